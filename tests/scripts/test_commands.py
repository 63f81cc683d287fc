"""The commands with a real (tiny) model; where streams and exit codes matter most, in a process of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


type Start = Callable[..., Done]


@pytest.fixture
def start(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Start:
    """Run `distaff` in this process, in an empty folder, with caches of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTAFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def run(*arguments: str) -> Done:
        code = distaff(*arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


def process(*arguments: str, program: str = "", stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `distaff` as a user runs it."""
    code = program + "from distaff.scripts.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], input=stdin, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_generate_streams_apart(start: Start, tiny_model: Path) -> None:
    arguments = ("generate", "--model", str(tiny_model), "--temperature", "0", "--max-tokens", "6")
    plain = process(*arguments, stdin="Hello\n")
    assert plain.returncode == 0, plain.stderr
    assert [line.split()[0] for line in plain.stderr.splitlines()] == ["Loading", "Compiling"]

    done = start(*arguments, "--prompt", "Hello", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert answer["text"] == plain.stdout.removesuffix("\n")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "cached_tokens": 0, "total_tokens": 11}
    assert len(answer["token_ids"]) == 6 and answer["finish_reason"] == "length"
    assert answer["timings"]["load"] > 0 and answer["timings"]["compile"] > 0


def test_chat_renders_the_template(start: Start, tiny_model: Path) -> None:
    done = start(
        *("generate", "--model", str(tiny_model), "--max-tokens", "1", "--json", "--seed", "5"),
        *("--chat", "--system", "ab", "--prompt", "cd"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["usage"]["prompt_tokens"] == len("[system]ab[user]cd[assistant]")
    assert answer["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "-m", "{model}", "-p", "x" * 200], 2, "the prompt has 200 tokens, the context holds 128"),
        (["generate", "-m", "{model}", "-p", "x", "--backend", "abacus"], 2, "backend 'abacus': unknown"),
        (["generate", "-m", "no-such-model", "-p", "x"], 2, "--model no-such-model"),
        (["generate", "-m", "smollm2-135m-instruct", "-p", "x", "--offline"], 1, "smollm2-135m-instruct"),
        (["convert", "{model}", ".", "--to", "safetensors"], 2, "--overwrite"),
        (["models", "clear"], 2, "--all"),
        (["models", "clear", "nothing"], 2, "nothing"),
    ],
)
def test_failures_are_one_message(
    start: Start, tiny_model: Path, arguments: list[str], code: int, message: str
) -> None:
    done = start(*(argument.format(model=tiny_model) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    complaint = done.stderr.splitlines()[-1]
    assert complaint.startswith("error: ") and message in complaint
    assert "Traceback" not in done.stderr


def test_a_model_without_chat_template_cannot_chat(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    done = start("generate", "-m", str(folder), "-p", "x", "--chat")
    assert done.returncode == 1
    assert "the model has no chat template" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tiny_model: Path) -> None:
    closed = "import os; read, write = os.pipe(); os.dup2(write, 1); os.close(read)\n"
    done = process("generate", "-m", str(tiny_model), "-p", "x", program=closed)
    assert done.returncode == 141
    assert "error" not in done.stderr and "Traceback" not in done.stderr


def test_a_failure_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = process("generate", "-m", str(tmp_path), "-p", "x")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: found nothing; expected")


@pytest.mark.slow
def test_convert_cuts_for_a_layout(start: Start, tiny_model: Path) -> None:
    """Without four devices: virtual ones hold the parts while they are written."""
    made = start("convert", str(tiny_model), "cut", "--to", "orbax", "--layout", "tensor=2")
    assert made.returncode == 0, made.stderr
    answers = []
    for where in ([str(tiny_model)], ["cut"], ["cut", "--layout", "tensor=2", "--devices", "2"]):
        done = start("generate", "-m", *where, "-p", "Hello", "--temperature", "0", "--max-tokens", "8", "--json")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["token_ids"])
    assert answers[0] == answers[1] == answers[2]
    refused = start("convert", str(tiny_model), "none", "--to", "safetensors", "--layout", "tensor=2")
    assert refused.returncode == 2 and "write orbax" in refused.stderr
    alone = start("convert", str(tiny_model), "none", "--to", "orbax", "--layout", "tensor")
    assert alone.returncode == 2 and "such as tensor=4" in alone.stderr


@pytest.mark.slow
def test_convert_keeps_the_answers(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    made = start("convert", str(tiny_model), "orbax", "--to", "orbax", "--json")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert report["destination"] == "orbax" and report["format"] == "orbax" and report["bytes"] > 0
    back = start("convert", "orbax", "back", "--to", "safetensors")
    assert back.returncode == 0, back.stderr
    assert back.stdout.startswith("wrote back (")
    answers = []
    for folder in (str(tiny_model), "orbax", "back"):
        done = start("generate", "-m", folder, "-p", "Hello", "--temperature", "0", "--max-tokens", "8", "--json")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["token_ids"])
    assert answers[0] == answers[1] == answers[2]


def test_models_lists_and_clears(start: Start, tmp_path: Path) -> None:
    model = tmp_path / "cache" / "models" / "some-model" / "weights.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(bytes(1500))
    listed = json.loads(start("models", "--json").stdout)
    assert "smollm2-135m-instruct" in [known["name"] for known in listed["known"]]
    assert "llama-3.1-8b" in listed["configs"]
    assert listed["cache_dir"] == str(tmp_path / "cache")
    assert listed["cached"] == [{"name": "some-model", "path": str(model.parent), "bytes": 1500, "shared": False}]
    shown = start("models").stdout
    assert "smollm2-135m-instruct" in shown and "some-model" in shown and "1.5 kB" in shown
    assert start("models", "clear", "some-model").stdout == "removed some-model (1.5 kB)\n"
    assert not model.parent.exists()
    assert start("models", "clear", "--all").stdout == "nothing was cached\n"
