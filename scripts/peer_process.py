"""The programs that `bench_peers` compares, each in a process that is stopped while it has nothing to do."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..serving.workload import Item

_RUNNER = Path(__file__).with_name("peer_runner.py")


@dataclass(frozen=True)
class Peer:
    """A program to compare.

    Attributes:
        runner, settings: as peer_runner.py has them.
        python: the interpreter that it runs in.
        missing: options without which it cannot run.
        measures: what is measured of it.
    """

    name: str
    runner: str
    python: str
    settings: Mapping[str, Any]
    missing: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.runner == "distaff"


class Runner:
    """A peer's process, which loads its model on the way. Stopped unless it has something to do.

    Raises:
        RuntimeError: it ended; the message holds the last of what it said.
    """

    def __init__(self, peer: Peer, log: Path) -> None:
        self.peer = peer
        self._log = log
        command = ["-m", "distaff.scripts.peer_runner"] if peer.ours else [str(_RUNNER)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if not peer.ours:
            environment.pop("PYTHONPATH", None)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [peer.python, *command, peer.runner, json.dumps(peer.settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                start_new_session=True,  # so that it can be stopped with all its children
            )
        try:
            self.version = str(self._answer()["ready"])
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def run(self, work: Sequence[Item]) -> tuple[float, float]:
        """Seconds that the work took, and how many cores other programs took meanwhile."""
        assert self._process.stdin is not None
        line = json.dumps([[item.prompt, item.max_tokens] for item in work])
        self._signal(signal.SIGCONT)
        start, busy, own = time.perf_counter(), _busy_seconds(), _session_seconds(self._process.pid)
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        seconds = float(self._answer()["seconds"])
        own = _session_seconds(self._process.pid) - own
        others = (_busy_seconds() - busy - own) / (time.perf_counter() - start)
        self._signal(signal.SIGSTOP)
        return seconds, max(0.0, others)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.communicate()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it may have ended
            os.killpg(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.peer.name} ended with {self._process.wait()}; {self._log} ends with:\n{said}")
        return json.loads(line)


def _busy_seconds() -> float:
    """CPU seconds of the machine, all programs together; 0 where there is no /proc."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _session_seconds(session: int) -> float:
    """CPU seconds of a process and of all that it started."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
