"""From exceptions to messages on stderr and exit codes."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from typer.exceptions import TyperException

from ..backends.errors import DistaffError

FAILURE = 1
WRONG_USE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
READER_GONE = 141  # 128 + SIGPIPE


@contextmanager
def reporting(debug: bool) -> Iterator[None]:
    """Wrap the body of a command: its exceptions become a message and an exit code, and with `debug` a stack trace."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except BaseException as error:
        raise typer.Exit(exit_code_of(error, debug=debug)) from error


def exit_code_of(error: BaseException, *, debug: bool = False) -> int:
    """Print what the user needs to know about `error` to stderr, and say what to exit with."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return READER_GONE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        _complain("interrupted")
        return INTERRUPTED
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, TyperException):
        return _wrong_use(error)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, DistaffError):
        _complain(f"error: {error}")
        return error.exit_code
    if isinstance(error, MemoryError):
        _complain(
            "error: out of memory; --dtype bfloat16 halves what the weights need, `distaff doctor` shows what there is"
        )
        return FAILURE
    described = " ".join(f"{type(error).__name__}: {error}".split())
    hint = "" if debug else "; add --debug for the stack trace"
    _complain(f"error: {described} (a bug in Distaff, please report it{hint})")
    return FAILURE


def _wrong_use(error: TyperException) -> int:
    """What typer found wrong with the command line, or the help that it wants shown instead."""
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        _complain(message)
        return error.exit_code
    context = getattr(error, "ctx", None)
    _complain(f"error: {message}")
    if context is not None:
        _complain(f"Try '{context.command_path} --help'.")
    return error.exit_code


def _complain(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        pass


def _silence_stdout() -> None:
    """Point stdout elsewhere, so that the interpreter's last flush finds no closed pipe."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # stdout is no file here
    finally:
        os.close(devnull)
