"""`distaff generate`: flags, sources of the prompt, what goes to which stream. The model is a fake."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distaff.serving import SamplingParams

if TYPE_CHECKING:
    from .conftest import FakeLLM

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"")


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_text_goes_to_stdout_and_progress_to_stderr(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "--model", "m", "--prompt", "abc") == 0
    out, err = capsys.readouterr()
    assert out == "cba\n"
    assert err == "Loading m\n"


def test_every_flag_reaches_its_place(distaff: Run, llm: "type[FakeLLM]") -> None:
    flags = (
        "--max-tokens 5 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 11 --stop x --stop yz "
        "--dtype bfloat16 --backend reference --offline"
    )
    assert distaff("generate", "-m", "m", "-p", "abc", *flags.split()) == 0
    assert llm.made == [{"model": "m", "dtype": "bfloat16", "backend": "reference", "offline": True}]
    expected = SamplingParams(max_tokens=5, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=11, stop=("x", "yz"))
    assert llm.asked == [expected]


def test_defaults_are_those_of_python(distaff: Run, llm: "type[FakeLLM]") -> None:
    assert distaff("generate", "-m", "m", "-p", "abc") == 0
    assert llm.made == [{"model": "m", "dtype": "float32", "backend": "auto", "offline": None}]
    assert llm.asked == [SamplingParams()]


def test_help_states_the_defaults(distaff: Run, capsys: Capture) -> None:
    assert distaff("generate", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    defaults = SamplingParams()
    for flag, value in [
        ("--max-tokens N", defaults.max_tokens),
        ("--temperature X", defaults.temperature),
        ("--top-k N", defaults.top_k),
        ("--top-p X", defaults.top_p),
        ("--min-p X", defaults.min_p),
    ]:
        assert shown.split(flag)[1].split("[default: ")[1].split("]")[0] == str(value), flag


def test_json_is_one_object_on_one_line(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "a\u2028\u00e9", "--json", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert json.loads(out) == {
        "text": "\u00e9\u2028a",
        "token_ids": [0xE9, 0x2028, 0x61],
        "prompt_token_ids": [0x61, 0x2028, 0xE9],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        "timings": {"load": 1.0, "compile": 0.0, "prefill": 0.0, "decode": 2.0, "tokens_per_second": 2.0},
        "seed": 3,
    }


def test_chat_is_one_user_message(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "hi", "--chat") == 0
    assert distaff("generate", "-m", "m", "-p", "hi", "--chat", "--system", "be") == 0
    user = {"role": "user", "content": "hi"}
    assert llm.messages == [[user], [{"role": "system", "content": "be"}, user]]
    assert capsys.readouterr().out == "ih\nih|eb\n"


@pytest.mark.parametrize(
    ("data", "expected"), [(b"abc", "cba\n"), (b"abc\n", "cba\n"), (b"abc\r\n", "cba\n"), (b"abc\n\n", "\ncba\n")]
)
def test_prompt_from_stdin_and_file(
    distaff: Run,
    llm: "type[FakeLLM]",
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: bytes,
    expected: str,
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    assert distaff("generate", "-m", "m", "--prompt-file", str(file)) == 0
    assert capsys.readouterr().out == expected
    for arguments in ((), ("--prompt-file", "-")):
        pipe(monkeypatch, data)
        assert distaff("generate", "-m", "m", *arguments) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "a", "--system", "s"], "--system needs --chat"),
        (["-p", "a", "--prompt-file", "f"], "exclude each other"),
        (["-p", ""], "prompt is empty"),
        ([], "prompt is empty"),  # nothing piped in
        (["--prompt-file", "no-such-file"], "no-such-file: cannot be read (No such file or directory)"),
        (["-p", "a", "--temperature", "-1"], "temperature is -1.0, expected"),
        (["-p", "a", "--top-k", "-1"], "top_k is -1, expected"),
        (["-p", "a", "--top-p", "0"], "top_p is 0.0, expected"),
        (["-p", "a", "--min-p", "1.5"], "min_p is 1.5, expected"),
        (["-p", "a", "--max-tokens", "0"], "max_tokens is 0, expected"),
        (["-p", "a", "--seed", "-1"], "seed is -1, expected"),
        (["-p", "a", "--stop", ""], "stop is ('',), expected"),
        (["-p", "a", "--temperature", "nan"], "temperature is nan, expected"),
        (["-p", "a", "--dtype", "float64"], "float64"),
        (["-p", "a", "--max-tokens", "many"], "--max-tokens"),
        (["-p", "a", "--colour"], "--colour"),
    ],
)
def test_wrong_use_is_refused_before_the_model_is_loaded(
    distaff: Run, llm: "type[FakeLLM]", capsys: Capture, arguments: list[str], message: str
) -> None:
    assert distaff("generate", "-m", "m", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err
    assert llm.made == []


def test_the_model_must_be_named(distaff: Run, capsys: Capture) -> None:
    assert distaff("generate", "-p", "a") == 2
    assert "--model" in capsys.readouterr().err


def test_a_prompt_that_is_no_utf8_is_refused(
    distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe(monkeypatch, b"caf\xe9")
    assert distaff("generate", "-m", "m") == 2
    assert capsys.readouterr().err.startswith("error: stdin: byte 3 is 0xe9, not UTF-8")


def test_a_terminal_gets_no_control_characters(
    distaff: Run, llm: "type[FakeLLM]", capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distaff("generate", "-m", "m", "-p", "m13[\x1ba\t") == 0
    assert capsys.readouterr().out == "\ta\x1b[31m\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert distaff("generate", "-m", "m", "-p", "m13[\x1ba\t") == 0
    assert capsys.readouterr().out == "\ta\ufffd[31m\n"
