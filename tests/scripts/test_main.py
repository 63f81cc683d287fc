"""The command as a whole: exit codes, messages, and what it does not load."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from distaff.backends.errors import DistaffError, UsageError

if TYPE_CHECKING:
    from .conftest import FakeLLM

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
COMMANDS = ("generate", "convert", "models", "doctor")


def test_version(distaff: Run, capsys: Capture) -> None:
    assert distaff("--version") == 0
    assert capsys.readouterr().out == f"distaff {version('distaff')}\n"


def test_without_arguments_it_explains_itself(distaff: Run, capsys: Capture) -> None:
    assert distaff() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: distaff")
    assert distaff("--help") == 0
    assert capsys.readouterr().out.strip() == err.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(distaff: Run, capsys: Capture, command: str) -> None:
    assert distaff(command, "--help") == 0
    assert f"Examples:\n    distaff {command}" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_use(distaff: Run, capsys: Capture) -> None:
    assert distaff("generat") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "generat" in err and "Try 'distaff --help'." in err


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (DistaffError("file f: broken"), 1, "error: file f: broken\n"),
        (UsageError("field g: wrong"), 2, "error: field g: wrong\n"),
        (ZeroDivisionError("one\ntwo"), 1, "error: ZeroDivisionError: one two (a bug in Distaff, "),
        (MemoryError(), 1, "error: out of memory; --dtype bfloat16"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_exceptions_become_messages_and_exit_codes(
    distaff: Run,
    llm: "type[FakeLLM]",
    capsys: Capture,
    failure: BaseException,
    code: int,
    message: str,
    debug: bool,
) -> None:
    llm.failure = failure
    assert distaff("generate", "-m", "m", "-p", "a", *(["--debug"] if debug else [])) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    traced = debug and not isinstance(failure, KeyboardInterrupt)
    assert ("Traceback" in err) == traced
    assert ("--debug for the stack trace" in err) == (isinstance(failure, ZeroDivisionError) and not debug)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from distaff.scripts.main import app\n"
        "try: app(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax', 'flax', 'numpy', 'huggingface_hub', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
