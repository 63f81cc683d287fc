"""A job on a model that is loaded here."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ..http.spelling import Spelling
from .answers import Answers
from .chips import attached_chip, num_chips
from .identity import model_identity, place
from .job import Job, Outcome
from .loaded import Loaded
from .prepare import Preparer
from .work import RunWork

_PER_SLOT = 2
"""Requests that the engine has for each row of its batch, so that one waits wherever one ends."""


class LLMRun:
    """Answers a job with a model.

    Args:
        name: what the model was called.
        seed, served_names: as Preparer.
        began: `time.monotonic()` when the run began, loading included.
    """

    def __init__(
        self,
        llm: Loaded,
        job: Job,
        *,
        name: str,
        dtype: str,
        layout: str | None = None,
        seed: int = 0,
        served_names: Sequence[str] = (),
        began: float | None = None,
    ) -> None:
        self._llm, self._job, self._name, self._dtype, self._layout = llm, job, name, dtype, layout
        self._seed, self._served_names = seed, served_names
        self._chip = attached_chip()
        self._answering, self._cpu = time.monotonic(), time.process_time()
        self._began = self._answering if began is None else began
        self._work = RunWork(llm.engine.metrics, llm.config, dtype_bytes=jnp.dtype(dtype).itemsize)

    def figures(self) -> dict[str, Any]:
        """What this run has done so far."""
        return self._work.figures()

    def run(
        self, *, stopping: Callable[[], bool] = lambda: False, on_step: Callable[[], None] = lambda: None
    ) -> Outcome:
        """As Job.run."""
        llm, engine = self._llm, self._llm.engine
        replicas = len(getattr(engine, "engines", (engine,)))
        preparer = Preparer(
            llm.tokenizer,
            context=engine.config.context,
            now=self._job.now,
            job_seed=self._seed,
            served_names=self._served_names,
        )
        return self._job.run(
            engine,
            preparer,
            Answers(self._served_names[0] if self._served_names else self._name, Spelling(llm.tokenizer)),
            identity=model_identity(llm, self._name, dtype=self._dtype),
            advance=engine.step,
            capacity=lambda: _PER_SLOT * engine.config.max_batch * replicas,
            stopping=stopping,
            on_step=on_step,
            details=self._details,
        )

    def _details(self) -> Mapping[str, Any]:
        now = time.monotonic()
        return {
            "seconds": round(now - self._began, 3),
            "busy_seconds": round(now - self._answering, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
            "chip": None if self._chip is None else self._chip.name,
            "chips": num_chips(self._llm, self._chip),
            **place(self._llm, self._layout),
            **self.figures(),
        }
