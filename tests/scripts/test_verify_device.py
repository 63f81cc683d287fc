"""`scripts/verify_device`: it passes what is right, finds what is wrong, and writes a report."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from typer.testing import CliRunner

from distaff.backends.base import PyTree
from distaff.backends.cpu.backend import CpuBackend
from distaff.scripts import device_checks
from distaff.scripts.verify_device import verify_device
from distaff.serving.limits import MachineLimits


class Skewed(CpuBackend):
    """Wrong in the third decimal place."""

    def ragged_attention(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, PyTree]:
        out, cache = super().ragged_attention(*args, **kwargs)
        return out * 1.001, cache

    def linear(self, *args: Any, **kwargs: Any) -> jax.Array:
        return super().linear(*args, **kwargs) * 1.001


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks, "SHAPES", device_checks.SHAPES[-1:])


@pytest.mark.usefixtures("one_shape")
def test_right_kernels_pass_and_wrong_ones_are_found() -> None:
    (right,) = device_checks.attention(CpuBackend(), "float32")
    (wrong,) = device_checks.attention(Skewed(), "float32")
    assert right.passed and right.error is not None and right.bound is not None and right.error < right.bound / 4
    assert not wrong.passed and set(wrong.facts) == {"prefill", "mixed", "decode"}
    found = {check.name: check.passed for check in device_checks.products(Skewed(), "float32")}
    assert found == {"linear, float32": False, "grouped linear, float32": True, "dense attention, float32": True}


@pytest.mark.usefixtures("one_shape")
def test_a_shape_without_a_kernel_is_declined_with_the_reason() -> None:
    class Odd(CpuBackend):
        page_size = 12

    (check,) = device_checks.attention(Odd(page_size=12), "float32")
    assert check.passed and "declined: backend cpu: page size 12" in check.found


def test_a_speed_stands_beside_its_limit() -> None:
    check = device_checks._rate("reading", 4e9, MachineLimits(8e9, 1.0).bytes_per_s, "B/s")
    assert check.found == "4.0 GB/s, 50% of this machine's 8"


@pytest.mark.slow
def test_the_whole_of_it_on_this_machine(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(verify_device)
    answer = CliRunner().invoke(app, ["--out", str(tmp_path / "report.json")])
    assert answer.exit_code == 0, answer.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["backend"] == "cpu" and len(report["checks"]) == 20
    assert all(check["passed"] for check in report["checks"])
    assert report["checks"][-1]["facts"]["rate"] > 0
