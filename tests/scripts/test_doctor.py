"""`distaff doctor` finds what is there, and what is broken."""

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from distaff.backends import host_memory
from distaff.backends.base import MemoryInfo
from distaff.scripts import checks

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Caches of the test's own, and no accelerator."""
    monkeypatch.setenv("DISTAFF_CACHE", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(checks, "has_tpu", lambda: False)
    monkeypatch.setattr(checks, "has_gpu", lambda: False)
    return tmp_path


def report(distaff: Run, capsys: Capture, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = distaff("doctor", "--json", *arguments)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    result = json.loads(out)
    assert result["ok"] == (code == 0)
    return code, {check["name"]: check for check in result["checks"]}


def test_a_healthy_machine(distaff: Run, capsys: Capture) -> None:
    code, found = report(distaff, capsys)
    assert code == 0, found
    assert found["jax"]["found"] == version("jax")
    assert found["distaff"]["found"] == version("distaff")
    assert found["device 0"]["found"].startswith("cpu")
    assert {"python", "memory", "model cache", "hub cache", "backend", "extra tpu", "extra cuda"} <= found.keys()
    assert "hub" not in found
    assert distaff("doctor") == 0
    assert re.search(rf"^ok +jax +{re.escape(version('jax'))}$", capsys.readouterr().out, re.MULTILINE)


def test_a_cache_that_cannot_be_written(
    distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    (caches / "file").write_text("in the way")
    monkeypatch.setenv("DISTAFF_CACHE", str(caches / "file" / "models"))
    code, found = report(distaff, capsys)
    assert code == 1
    assert found["model cache"]["status"] == "wrong"
    assert "DISTAFF_CACHE" in found["model cache"]["remedy"]


def test_a_dependency_that_is_missing_or_old(distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "requires", lambda _: ["no-such-package>=1", "numpy>=99", 'absent>=1; extra == "x"'])
    code, found = report(distaff, capsys)
    assert code == 1
    assert found["no-such-package"]["found"] == "not installed"
    assert found["no-such-package"]["remedy"] == 'pip install "no-such-package>=1"'
    assert found["numpy"]["found"] == f"{version('numpy')}, expected >=99"
    assert "absent" not in found


def test_an_accelerator_that_jax_does_not_use(distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "has_tpu", lambda: True)
    code, found = report(distaff, capsys)
    assert code == 1
    assert found["accelerator"]["status"] == "wrong"
    assert "JAX_PLATFORMS" in found["accelerator"]["remedy"]


def test_little_memory_is_noted(distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "host_memory", lambda: MemoryInfo(10**9, 10**9))
    findings = list(checks._memory())
    assert [finding.status for finding in findings] == [checks.Status.NOTE]
    assert "1.0 GB available of 1.0 GB" in findings[0].found


def test_a_check_that_breaks_is_a_finding(distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def _devices() -> list[checks.Finding]:
        raise RuntimeError("no driver")

    monkeypatch.setattr(checks, "_devices", _devices)
    code, found = report(distaff, capsys)
    assert code == 1
    assert found["devices"]["found"] == "RuntimeError: no driver"


def test_the_hub_is_asked_only_when_told(distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = report(distaff, capsys, "--network")
    assert found["hub"]["found"].startswith("not asked: HF_HUB_OFFLINE is set")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:1")
    code, found = report(distaff, capsys, "--network")
    assert code == 1
    assert found["hub"]["found"].startswith("http://localhost:1 does not answer")
