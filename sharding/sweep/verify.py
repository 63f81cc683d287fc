"""Has the compiler of the chips make the steps of rows, as they would be served.

Of each row its decode step, and its prefill step where prompts are part of the sweep. Both in two programs
(whole_step.py), of which one is the same for many rows. checked.py says what comes out.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...backends.compile_job import CompileJob
from ...backends.compile_process import CompileProcess
from ...backends.compiler.errors import (
    CompileError,
    CompilerAbortedError,
    CompilerNotFoundError,
    CompileTimeoutError,
    SchedulesMissingError,
    UnknownTopologyError,
)
from ...backends.compiler.report import CompileReport
from ...backends.errors import DistaffError
from ...models.compress import rounded_as
from ..check import Devices, problem
from ..collectives import StepShape
from ..layout import Layout
from .compile_cache import CompileCache
from .precisions import KV_DTYPES, SERVED, precision
from .request import SweepRequest
from .rows import Row
from .slices import Slice
from .whole_step import whole_step

KERNELS = ".*(attention|grouped_matmul|rounded).*"
"""The kernels of steps (backends/tpu). Schedules of XLA's operations are not asked for: there are hundreds of them."""
UNAVAILABLE = "unavailable"
"""The kind of a refusal that is not the program's: there is no compiler for these chips here."""
_MISSING = (CompilerNotFoundError, SchedulesMissingError, UnknownTopologyError)


@dataclass(frozen=True)
class Builders:
    """Names of the callables that make the cases: of a step that takes the most likely tokens, with the arguments that
    checks_of gives, and of drawing tokens from logits."""

    step: str
    drawing: str


@dataclass(frozen=True)
class Task:
    """A program to compile; `what` it is, in words."""

    job: CompileJob
    what: str

    @cached_property
    def key(self) -> str:
        """The same for tasks that have the same answer."""
        return json.dumps(dataclasses.asdict(self.job), sort_keys=True)


@dataclass(frozen=True)
class Answer:
    """What came out of a task: a report, or the kind and the message of a refusal; `cached`: it was known."""

    report: CompileReport | None
    refused: Mapping[str, str] | None
    cached: bool


@dataclass(frozen=True)
class Check:
    """One step of one row, in two programs."""

    row: str
    phase: str
    shape: StepShape
    step: Task
    drawing: Task

    @property
    def tasks(self) -> tuple[Task, Task]:
        return self.step, self.drawing


@dataclass(frozen=True)
class Verified:
    """What came out of a check, as an Answer has it; `cached`: both of its programs were known."""

    check: Check
    report: CompileReport | None
    refused: Mapping[str, str] | None
    cached: bool

    @classmethod
    def of(cls, check: Check, answers: Mapping[str, Answer]) -> "Verified":
        """
        Args:
            answers: of all tasks, by their keys.
        """
        step, drawing = (answers[task.key] for task in check.tasks)
        cached = step.cached and drawing.cached
        if step.report is None or drawing.report is None:
            return cls(check, None, step.refused or drawing.refused, cached)
        logits = 4 * check.shape.rows * check.drawing.job.arguments["vocab_size"]
        return cls(check, whole_step(step.report, drawing.report, logits=logits), None, cached)


def checks_of(
    request: SweepRequest, row: Row, layout: Layout, on: Slice, *, builders: Builders, phases: Sequence[str]
) -> list[Check] | str:
    """What to compile for a row; in words, why it cannot be compiled."""
    if (row["weights"], row["activations"]) not in SERVED:
        pairs = ", ".join(" with ".join(pair) for pair in SERVED)
        return f"not compiled: steps have weights with activations of {pairs}"
    if row["kv"] not in KV_DTYPES:
        return f"not compiled: caches are of {', '.join(KV_DTYPES)}"
    if on.count > 1:
        return "not compiled: several slices"
    if on.chip.platform not in ("tpu", "cuda"):
        return f"not compiled: no compiler for {on.chip.name} is installed with Distaff"
    served = precision(row)
    devices, held = Devices(layout.num_devices), rounded_as(served.quantize, request.config)
    if error := problem(layout, held.config, devices, dtype=served.dtype, roundings=held.roundings):
        return f"not compiled: {error}"
    rows = row["batch"] // layout.replicas
    chunk = min(row["chunk"], round(request.workload.isl))
    shapes = {"decode": StepShape(rows), "prefill": StepShape(1, chunk)}

    def check(phase: str) -> Check:
        shape, context = shapes[phase], max(request.workload.longest, shapes[phase].queries)
        both = {"chip": on.chip.name, "rows": shape.rows, "context": context}
        of_layout = {
            "model": request.model,
            "preset": row["preset"],
            "mesh": row["mesh"],
            "dtype": served.dtype,
            "quantize": served.quantize,
            "kv_dtype": KV_DTYPES[row["kv"]],
            "queries": shape.queries,
        }
        drawing = {**both, "vocab_size": request.config.vocab_size}
        return Check(
            row["id"],
            phase,
            shape,
            Task(CompileJob(builders.step, {**both, **of_layout}, on.topology), f"{phase} of {row['id']}"),
            Task(CompileJob(builders.drawing, drawing, on.topology), f"drawing in {shape.rows} rows"),
        )

    return [check(phase) for phase in phases]


def run_tasks(
    tasks: Iterable[Task], cache: CompileCache, *, timeout: float, on_start: Callable[[Task], None] = lambda _: None
) -> Iterator[Answer]:
    """Compiles what is not known yet, one after another; a crash or a time-out is an answer like any other."""
    with CompileProcess(KERNELS) as process:
        for task in tasks:
            known = cache.get(task.job)
            if known is not None:
                yield Answer(None, known, True) if isinstance(known, dict) else Answer(known, None, True)
                continue
            on_start(task)
            try:
                report = process.run(task.job, timeout=timeout)
            except CompileError as error:
                refused = {"kind": error.kind, "message": " ".join(error.message.split())[:500]}
                # Another machine, or more time, may have another answer.
                if not isinstance(error, CompileTimeoutError | CompilerAbortedError):
                    cache.put(task.job, refused)
                yield Answer(None, refused, False)
            except DistaffError as error:
                # Or the builder refuses: a backend that declines, a layout that it cannot run.
                kind = UNAVAILABLE if isinstance(error, _MISSING) else "declined"
                yield Answer(None, {"kind": kind, "message": str(error)}, False)
            else:
                cache.put(task.job, report)
                yield Answer(report, None, False)
