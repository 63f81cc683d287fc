"""`distaff batch`: flags, exit codes, what goes to which stream. The engine is a fake, the job is real."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.select import select_backend
from distaff.serving.batch_jobs.errors import JobStoppedError
from distaff.serving.limits import MachineLimits
from distaff.sharding.multihost import free_port

from ..golden.harness import GOLDEN, Golden
from ..serving.batch_jobs.conftest import TOKENIZER, fake_engine, request_line, rows, write_lines

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]


class FakeLLM:
    """The fake engine behind the surface of an LLM; `made` is how."""

    made: list[dict[str, Any]]
    remarks = ()
    follows = False

    def __init__(self, model: str, **arguments: Any) -> None:
        arguments.pop("on_progress")
        self.made.append({"model": model, **arguments})
        self.engine = fake_engine()
        self.engine.config = type(self.engine.config)(**{**vars(self.engine.config), "context": 128})
        self.tokenizer = TOKENIZER
        self.config = Golden(GOLDEN / "llama31").config
        self.backend = select_backend("reference")
        self.path = GOLDEN / "llama31"

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    kind = type("Fresh", (FakeLLM,), {"made": []})
    monkeypatch.setattr("distaff.serving.LLM", kind)
    monkeypatch.setattr(
        "distaff.serving.batch_jobs.chips.measure_limits", lambda backend, dtype: MachineLimits(1e10, 1e11)
    )
    return kind


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests follow in this process, with garbage of theirs."""
    monkeypatch.setattr("distaff.serving.garbage.settle_memory", lambda: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with six requests in in.jsonl, the last one bad."""
    monkeypatch.chdir(tmp_path)
    lines = [request_line(index) for index in range(6)]
    lines[5]["body"]["temperature"] = "hot"
    write_lines(tmp_path / "in.jsonl", lines)
    return tmp_path


def test_a_file_in_and_a_file_out(
    distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distaff.scripts.batch._WORTH_MEASURING", 0.0)
    assert distaff("batch", "in.jsonl", "out.jsonl", "-m", "m", "--json", "--price", "3.6") == 3
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert len(out.splitlines()) == 1
    assert (told["output"], told["total"], told["completed"], told["failed"]) == ("out.jsonl", 6, 5, 1)
    assert told["errors"] == {"invalid_parameter": 1} and told["runs"] == 1 and told["chips"] == 1
    assert told["dollars"] == pytest.approx(told["chip_hours"] * 3.6, abs=2e-6) and told["mbu"] > 0
    assert told["price_source"] == "given by --price"
    cost = json.loads((here / "out.jsonl.manifest.json").read_text())["cost"]
    assert cost == {name: told[name] for name in cost} and cost["dollars"] > 0
    assert [row["custom_id"] for row in rows(here / "out.jsonl")] == [f"id-{index}" for index in range(5)]
    (bad,) = rows(here / "out.jsonl.errors.jsonl")
    assert bad["error"]["param"] == "temperature" and bad["error"]["line"] == 6
    assert "1 of 6 lines cannot be answered: 1 invalid_parameter\n  in.jsonl:6: invalid_parameter: temperature" in err
    assert "6/6 lines (100%)" in err and "Traceback" not in err
    assert llm.made == [{"model": "m", "dtype": "bfloat16", "backend": "auto", "offline": None, "deterministic": True}]


def test_again_it_is_refused_resumed_or_replaced(distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture) -> None:
    command = ("batch", "in.jsonl", "out.jsonl", "-m", "m")
    assert distaff(*command, "--tolerate-errors") == 0
    whole = (here / "out.jsonl").read_bytes()
    assert "answered" in capsys.readouterr().out
    assert distaff(*command) == 2
    assert "exists already; --resume goes on with that job, --overwrite replaces it" in capsys.readouterr().err
    assert distaff(*command, "--resume", "--json") == 3
    assert json.loads(capsys.readouterr().out)["completed"] == 5 and len(llm.made) == 1
    assert distaff(*command, "--overwrite", "--seed", "1", "--json") == 3
    assert json.loads(capsys.readouterr().out)["mbu"] is None  # it was over at once
    assert len(llm.made) == 2 and (here / "out.jsonl").read_bytes() != whole


def test_parts_are_joined(distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture) -> None:
    assert distaff("batch", "in.jsonl", "whole.jsonl", "-m", "m") == 3
    for part in ("0/2", "1/2"):
        distaff("batch", "in.jsonl", "out.jsonl", "-m", "m", "--shard", part, "--resume", "--price", "1")
    capsys.readouterr()
    for asked, price in (((), 1), (("--overwrite", "--price", "2"), 2)):
        assert distaff("batch", "merge", "out.jsonl", "--json", *asked) == 3
        told = json.loads(capsys.readouterr().out)
        assert told["total"] == 6 and told["dollars_per_chip_hour"] == price
        assert json.loads((here / "out.jsonl.manifest.json").read_text())["cost"]["dollars_per_chip_hour"] == price
    for end in ("", ".errors.jsonl"):
        assert (here / f"out.jsonl{end}").read_bytes() == (here / f"whole.jsonl{end}").read_bytes()


def test_a_host_that_is_not_the_first_comes_to_no_part_that_is_complete(
    distaff: Run, llm: type[FakeLLM], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distaff.scripts.batch.keep_stdout", lambda: None)  # of a process of its own
    command = ("batch", "in.jsonl", "out.jsonl", "-m", "m", "--shard", "0/2", "--resume")
    assert distaff(*command) == 0
    second = ("--layout", "tensor=2", "--coordinator", "127.0.0.1:1", "--num-hosts", "2", "--host", "1")
    assert distaff(*command, *second) == 0 and len(llm.made) == 1


def test_a_check_needs_no_model(distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture) -> None:
    assert distaff("batch", "in.jsonl", "out.jsonl", "--check", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["lines"], told["good"], told["bad"], told["errors"]) == (6, 5, 1, {"invalid_parameter": 1})
    assert told["problems"][0]["where"] == "in.jsonl:6"
    assert llm.made == [] and sorted(path.name for path in here.iterdir()) == ["in.jsonl"]


def test_a_check_with_a_model_counts_tokens(distaff: Run, tiny_model: Path, here: Path, capsys: Capture) -> None:
    (here / "long.txt").write_text("short\n" + "x" * 500 + "\n")
    assert distaff("batch", "long.txt", "out.jsonl", "--check", "-m", str(tiny_model), "--context", "100") == 3
    out, err = capsys.readouterr()
    assert out == "2 lines, 1 can be answered\n" and "long.txt:2: context_length_exceeded: the prompt has 500" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.jsonl", "out", "-m", "m"], 2, "none.jsonl: there is no such file"),
        (["in.jsonl", "nowhere/out", "-m", "m"], 1, "there is no folder nowhere"),
        (["in.jsonl", ".", "-m", "m"], 1, "cannot be written"),
        (["in.jsonl", "out"], 2, "--model is missing"),
        (["in.jsonl", "out", "-m", "m", "--resume", "--overwrite"], 2, "give one of them"),
        (["in.jsonl", "out", "-m", "m", "--defaults", "[1]"], 2, "--defaults is '[1]', expected a JSON object"),
        (["in.jsonl", "out", "-m", "m", "--shard", "2/2"], 2, "--shard is '2/2', expected I/N"),
        (["in.jsonl", "out", "-m", "m", "--price", "-1"], 2, "--price is -1.0"),
        (["in.jsonl", "out", "-m", "m", "--ids", "guess"], 2, "guess"),
        (["in.jsonl", "out", "-m", "m", "--runner", "ray", "--shard", "0/2"], 2, "drop --shard and --devices"),
        (
            ["in.jsonl", "out", "-m", "m", "--runner", "ray", "--layout", "tensor=2", "--hosts", "auto"],
            2,
            "drop --hosts",
        ),
        (["in.jsonl", "out", "-m", "m", "--runner", "ray", "--ray-resources", "4"], 2, "--ray-resources is '4'"),
        (["merge", "out"], 2, "expected the parts of one job beside it"),
    ],
)
def test_wrong_use_is_one_message(
    distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    assert distaff("batch", *arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err and llm.made == []


@pytest.mark.parametrize("began", ["ray", "local"])
def test_a_job_goes_on_with_the_runner_that_began_it(
    distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, began: str
) -> None:
    """The other one would answer again what the first has answered."""
    other = {"ray": "local", "local": "ray"}[began]

    def stopped(*_: Any, **__: Any) -> None:
        raise JobStoppedError("stopped")

    monkeypatch.setattr("distaff.scripts.batch.run_on_ray", stopped)
    monkeypatch.setattr("distaff.serving.batch_jobs.on_llm.LLMRun.run", stopped)
    command = ("batch", "in.jsonl", "out.jsonl", "-m", "m", "--resume", "--runner")
    assert distaff(*command, began) == 75 and distaff(*command, began) == 75
    assert distaff(*command, other) == 2
    assert f"out.jsonl: that job was begun with --runner {began}; give the same" in capsys.readouterr().err
    assert distaff(*command[:-2], "--overwrite", "--runner", other) == 75


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_its_runner_says_what_to_install(distaff: Run, here: Path, capsys: Capture) -> None:
    assert distaff("batch", "in.jsonl", "out.jsonl", "-m", "m", "--runner", "ray", "--workers", "2") == 2
    assert "pip install 'distaff[ray]'" in capsys.readouterr().err


@pytest.mark.soak  # each process compiles every program
@pytest.mark.parametrize("asked", [(0, 1), (0,), (1,)], ids=["both asked", "the first asked", "the other asked"])
def test_one_model_on_two_hosts(
    distaff: Run, tiny_model: Path, here: Path, capsys: Capture, asked: tuple[int, ...]
) -> None:
    """Stopped together in time, whatever each is at; one process alone goes on, and the answers are the same."""
    bodies = [{"prompt": f"number {index}", "max_tokens": 20, "temperature": 0} for index in range(300)]
    lines = [
        {"custom_id": f"id-{index}", "method": "POST", "url": "/v1/completions", "body": body}
        for index, body in enumerate(bodies)
    ]
    write_lines(here / "in.jsonl", lines)
    options = ["-m", str(tiny_model), "--context", "64", "--max-batch", "4", "--backend", "reference"]
    options += ["--dtype", "float32", "--resume"]
    program = "from distaff.scripts.main import main; main()"
    together = ["--layout", "tensor=2", "--coordinator", f"127.0.0.1:{free_port()}", "--num-hosts", "2", "--host"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device each

    def start(host: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", program, "batch", "in.jsonl", "out.jsonl", *options, *together, host]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    processes = [start("0"), start("1")]
    journal = here / "out.jsonl.journal"
    while all(each.poll() is None for each in processes) and not (journal.exists() and journal.stat().st_size > 9000):
        time.sleep(0.02)
    sent = time.monotonic()
    for index in asked:
        processes[index].send_signal(signal.SIGTERM)
    told = [each.communicate(timeout=60)[1] for each in processes]
    assert time.monotonic() - sent < 5.5 and [each.returncode for each in processes] == [75, 75], told
    assert "stopped (it was asked to) behind" in told[0] and "host 0 has what was answered" in told[1]

    assert distaff("batch", "in.jsonl", "out.jsonl", *options) == 0
    first, second = json.loads((here / "out.jsonl.manifest.json").read_text())["runs"]
    assert (first["layout"], second["layout"]) == ("tensor=2", None) and first["lines"] + second["lines"] == 300
    assert 10 < first["lines"] < 290
    assert distaff("batch", "in.jsonl", "alone.jsonl", *options) == 0
    assert (here / "out.jsonl").read_bytes() == (here / "alone.jsonl").read_bytes()
    late = start("1")  # where nothing is left to be done host 0 does not come
    said = late.communicate(timeout=30)
    assert late.returncode == 0, said


def test_help_is_that_of_the_command_without_a_name(distaff: Run, capsys: Capture) -> None:
    for arguments in ((), ("--help",)):
        assert distaff("batch", *arguments) == 0
        out = capsys.readouterr().out
        assert out.startswith("Usage: distaff batch [OPTIONS] {INPUT} {OUTPUT}")
        for title in ("Options", "What is read", "The job", "How it runs", "Several hosts"):
            assert f"\n{title}:\n" in out


def test_on_a_terminal_there_is_a_bar(
    distaff: Run, llm: type[FakeLLM], here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert distaff("batch", "in.jsonl", "out.jsonl", "-m", "m") == 3
    assert "lines (" not in capsys.readouterr().err
