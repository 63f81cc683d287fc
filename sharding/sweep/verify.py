"""Has the compiler of the chips make the steps of rows, as they would be served.

Of each row its decode step, and its prefill step where prompts are part of the sweep. checked.py says what comes out.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from ..collectives import StepShape
from ..layout import Layout
from .compile_cache import CompileCache
from .request import COMPUTED, SweepRequest
from .rows import Row
from .slices import Slice

KERNELS = ".*attention.*"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "fp8": "float8_e4m3fn"}
UNAVAILABLE = "unavailable"
"""The kind of a refusal that is not the program's: there is no compiler for these chips here."""
_MISSING = (CompilerNotFoundError, SchedulesMissingError, UnknownTopologyError)


@dataclass(frozen=True)
class Check:
    """One step of one row."""

    row: str
    phase: str
    shape: StepShape
    job: CompileJob

    @property
    def job_key(self) -> str:
        """The same for checks that have the same answer."""
        return json.dumps(dataclasses.asdict(self.job), sort_keys=True)


@dataclass(frozen=True)
class Verified:
    """What came out of a check: a report, or the kind and the message of a refusal; `cached`: it was known."""

    check: Check
    report: CompileReport | None
    refused: Mapping[str, str] | None
    cached: bool

    def of(self, check: Check) -> "Verified":
        """The same answer to a check of the same job; the first one alone was compiled for."""
        return self if check is self.check else dataclasses.replace(self, check=check, cached=True)


def checks_of(
    request: SweepRequest, row: Row, layout: Layout, on: Slice, *, builder: str, phases: Sequence[str]
) -> list[Check] | str:
    """What to compile for a row; in words, why it cannot be compiled."""
    for what in ("weights", "activations", "kv"):
        if row[what] not in COMPUTED[what]:
            return f"not compiled: steps compute with {what} of {', '.join(COMPUTED[what])} alone"
    if row["weights"] != row["activations"]:
        return "not compiled: steps hold weights in the precision that they compute in"
    if on.count > 1:
        return "not compiled: several slices"
    if on.chip.platform not in ("tpu", "cuda"):
        return f"not compiled: no compiler for {on.chip.name} is installed with Distaff"
    rows = row["batch"] // layout.replicas
    chunk = min(row["chunk"], round(request.workload.isl))
    shapes = {"decode": StepShape(rows), "prefill": StepShape(1, chunk)}
    return [
        Check(
            row["id"],
            phase,
            shapes[phase],
            CompileJob(
                builder,
                {
                    "model": request.model,
                    "preset": row["preset"],
                    "mesh": row["mesh"],
                    "chip": on.chip.name,
                    "dtype": DTYPES[row["weights"]],
                    "kv_dtype": DTYPES[row["kv"]],
                    "rows": shapes[phase].rows,
                    "queries": shapes[phase].queries,
                    "context": request.workload.longest,
                },
                on.topology,
            ),
        )
        for phase in phases
    ]


def run_checks(
    checks: Sequence[Check], cache: CompileCache, *, timeout: float, on_start: Callable[[Check], None] = lambda _: None
) -> Iterator[Verified]:
    """Compiles what is not known yet, one after another; a crash or a time-out is an answer like any other."""
    with CompileProcess(KERNELS) as process:
        for check in checks:
            known = cache.get(check.job)
            if known is not None:
                refused = known if isinstance(known, dict) else None
                yield Verified(check, None if isinstance(known, dict) else known, refused, True)
                continue
            on_start(check)
            try:
                report = process.run(check.job, timeout=timeout)
            except CompileError as error:
                refused = {"kind": error.kind, "message": " ".join(error.message.split())[:500]}
                # Another machine, or more time, may have another answer.
                if not isinstance(error, CompileTimeoutError | CompilerAbortedError):
                    cache.put(check.job, refused)
                yield Verified(check, None, refused, False)
            except DistaffError as error:
                # Or the builder refuses: a backend that declines, a layout that it cannot run.
                kind = UNAVAILABLE if isinstance(error, _MISSING) else "declined"
                yield Verified(check, None, {"kind": kind, "message": str(error)}, False)
            else:
                cache.put(check.job, report)
                yield Verified(check, report, None, False)
