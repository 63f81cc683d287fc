"""Compiles in another process, which may take long or die without harm."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from . import errors as general
from .compile_job import CompileJob
from .compiler import errors
from .compiler.errors import CompileError, CompilerAbortedError, CompileTimeoutError
from .compiler.libtpu import print_only
from .compiler.report import CompileReport

_ENVIRONMENT = {
    # The compilers must not look for devices; see compiler/libtpu.py.
    "JAX_PLATFORMS": "cpu",
    # Programs for devices that are not here cannot be read back.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
_LAST_WORDS = 4000


class CompileProcess:
    """A process that compiles one job after another, started when the first one comes and again after a failure.

    Use it in a `with` statement; it ends with it. Several may live at once.

    Args:
        kernels: a regular expression of the names of the TPU kernels whose schedules are wanted; None: all. A whole
            step has hundreds of operations of XLA's own, whose schedules nobody reads and which take longer to print
            than to compile.
    """

    def __init__(self, kernels: str | None = None) -> None:
        self._kernels = kernels
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        # What compilers leave behind goes when this does, however the process ended.
        self._folder = tempfile.TemporaryDirectory(prefix="distaff-compile-")
        self._log = Path(self._folder.name, "log").open("w+b")  # noqa: SIM115 - closed by __exit__
        self._pending = b""

    def __enter__(self) -> "CompileProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._log.close()
        self._folder.cleanup()

    def run(self, job: CompileJob, *, timeout: float = 600.0) -> CompileReport:
        """Compiles one job.

        Args:
            job: what to compile.
            timeout: seconds, the start of the process included.

        Raises:
            CompileTimeoutError: it took longer.
            CompilerAbortedError: the process died; the message ends with the compiler's last words.
            CompileError: the compiler refused the program; the class says what for.
            DistaffError: what analyze raises beside that, such as UnknownTopologyError.
        """
        process = self._started()
        assert process.stdin is not None
        said = os.fstat(self._log.fileno()).st_size
        with contextlib.suppress(BrokenPipeError):  # it died already; reading says so
            process.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            process.stdin.flush()
        line = self._read_line(time.monotonic() + timeout)
        if line is None:
            self._stop()
            raise CompileTimeoutError(job.topology, f"{job.builder} was not compiled within {timeout:g} s")
        if not line:
            code = process.wait()
            words = self._last_words(said)
            self._stop()
            raise CompilerAbortedError(job.topology, f"compiling {job.builder}, the process {_end(code)}{words}")
        return _outcome(json.loads(line))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._answers, write_end = os.pipe()
            self._pending = b""
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.compile_worker", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[write_end],
                env={**os.environ, **_ENVIRONMENT, **print_only(self._kernels), "TMPDIR": self._folder.name},
            )
            os.close(write_end)
        return self._process

    def _read_line(self, deadline: float) -> bytes | None:
        """One line; empty at the end of the stream; None when the time is over."""
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            read = os.read(self._answers, 1 << 20)
            if not read:
                return b""
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _last_words(self, since: int) -> str:
        self._log.seek(since)
        said = self._log.read().decode(errors="replace").strip()
        return f"; its last words:\n{said[-_LAST_WORDS:]}" if said else " without a word"

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a job that it never read
                self._process.stdin.close()
        self._process.wait()
        os.close(self._answers)
        self._process = None


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _outcome(answer: dict[str, Any]) -> CompileReport:
    if "report" in answer:
        return CompileReport.from_dict(answer["report"])
    known = {**vars(general), **vars(errors)}
    kind = next(known[name] for name in answer["errors"] if name in known)  # the first base that this layer has
    if issubclass(kind, CompileError):
        raise kind(answer["topology"], answer["message"])
    raise kind(answer["message"])
