"""What an actor of Ray does: it loads the model once, and answers one part of the input after the other."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .cores import Cores
from .errors import JobLockedError
from .formats import InputFiles
from .job import Job, JobSpec, open_store
from .loaded import Loaded
from .on_llm import LLMRun
from .scan import Scan
from .shard import Shard

_LOCK_SECONDS = 120.0
"""How long the process that worked on a part may take to be gone."""


@dataclass(frozen=True)
class RayPlan:
    """What is the same for all actors.

    Attributes:
        load: makes the model.
        files, found: the input, and what a scan of it found.
        output: of the whole; parts lie beside it.
        name, dtype, layout: as LLMRun.
        cores: that an actor keeps to, where it computes on them alone; 0 for all.
    """

    load: Callable[[], Loaded]
    files: InputFiles
    found: Scan
    output: str
    spec: JobSpec
    name: str
    dtype: str
    layout: str | None = None
    served_names: tuple[str, ...] = ()
    cores: int = 0


class RayWorker:
    """One actor. `stop` may be called while `answer` runs."""

    def __init__(self, plan: RayPlan) -> None:
        self._plan = plan
        self._stopping = threading.Event()
        self._loaded: Loaded | None = None
        self._cores = Cores(plan.cores)

    def ready(self) -> bool:
        """Loads the model."""
        self._cores.keep_to()
        self._loaded = self._plan.load()
        return True

    def answer(self, index: int, count: int) -> dict[str, Any]:
        """Answers a part, from wherever somebody stopped in it; returns its manifest.

        Raises:
            DistaffError: as Job.run.
        """
        plan = self._plan
        assert self._loaded is not None
        self._cores.keep_to()  # this may be another thread than that of `ready`
        shard, began = Shard(index, count), time.monotonic()
        spec = replace(plan.spec, shard=shard)
        with self._open(spec, shard.name(plan.output)) as job:
            if job.complete is not None:
                return job.complete
            run = LLMRun(
                self._loaded,
                job,
                name=plan.name,
                dtype=plan.dtype,
                layout=plan.layout,
                seed=spec.seed,
                served_names=plan.served_names,
                began=began,
            )
            return run.run(stopping=self._stopping.is_set).manifest

    def stop(self) -> None:
        """Ends `answer` between two steps."""
        self._stopping.set()

    def _open(self, spec: JobSpec, output: str) -> Job:
        """The part's job. An actor that died may hold the lock for a moment."""
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return Job(self._plan.files, self._plan.found, open_store(output), spec, resume=True)
            except JobLockedError:
                if time.monotonic() > until or self._stopping.is_set():
                    raise
                time.sleep(1.0)


def num_parts(lines: int, workers: int, *, part_lines: int) -> int:
    """Parts to cut an input into: several for each worker, so that none is idle for long in the end, but none so small
    that filling and emptying the batch is what it does most."""
    return max(1, min(8 * workers, -(-lines // part_lines)))
