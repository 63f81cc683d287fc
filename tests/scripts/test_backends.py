"""`distaff backends`."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distaff.backends import select
from distaff.backends.errors import UnsupportedError
from distaff.scripts.main import app

RUN = CliRunner()


def test_each_backend_is_available_or_says_why_not() -> None:
    answer = RUN.invoke(app, ["backends"])
    assert answer.exit_code == 0
    assert "tpu: not available\n  JAX's default backend is cpu, not tpu; with a TPU in the machine" in answer.output
    assert "cpu: available, chosen by auto" in answer.output and "grouped_linear" in answer.output


def test_json_tells_machines_the_same() -> None:
    found = json.loads(RUN.invoke(app, ["backends", "--json"]).stdout)
    assert found["chosen"] == "cpu" and [row["name"] for row in found["backends"]] == list(select.CANDIDATES)
    assert found["backends"][0].keys() == {"name", "available", "reason"}
    assert found["backends"][2]["kernels"]["linear"].startswith("LLVM for")
    assert found["backends"][3]["memory"]["total"] >= os.sysconf("SC_PAGE_SIZE")


def test_a_machine_that_nothing_runs_on_is_told_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline() -> select.ReferenceBackend:
        raise UnsupportedError("no chip")

    monkeypatch.setattr(select, "CANDIDATES", {"tpu": decline})
    found = json.loads(RUN.invoke(app, ["backends", "--json"]).stdout)
    assert found == {"chosen": None, "backends": [{"name": "tpu", "available": False, "reason": "no chip"}]}


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_a_backend_that_declines_gives_its_reason(command: str, tmp_path: Path) -> None:
    rest = ["generate", "-p", "x"] if command == "generate" else ["bench", "offline"]
    answer = RUN.invoke(app, [*rest, "--model", str(tmp_path), "--backend", "tpu"])
    assert answer.exit_code == 2 and "not tpu; with a TPU in the machine" in answer.output
