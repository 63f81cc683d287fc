"""What the compiler of the chips says about rows: does it fit, what does it send, how much does it compute.

Each row is compiled as it would be served: its decode step, and its prefill step where prompts are part of the sweep.
Nothing is timed. Cycles are the compiler's own estimate of XLA's operations and of the schedules of kernels; it has
none for what is sent, which is therefore counted as everywhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ...backends.compile_job import CompileJob
from ...backends.compile_process import CompileProcess
from ...backends.compiler.errors import CompileError, CompilerAbortedError, CompileTimeoutError
from ...backends.compiler.report import CompileReport
from ...backends.errors import DistaffError
from ...models.config import ModelConfig
from ...models.row_state import RowState
from ..collectives import StepShape, predict
from ..footprint import footprint
from ..layout import Layout
from ..report import comparison
from .compile_cache import CompileCache
from .links import Links
from .request import COMPUTED, SweepRequest
from .rows import Row
from .slices import Slice
from .work import device_work, used

KERNELS = ".*attention.*"
PAGE = 128
"""Of the caches that are compiled, as the TPU backend has them."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "fp8": "float8_e4m3fn"}


@dataclass(frozen=True)
class Check:
    """One step of one row."""

    row: str
    phase: str
    shape: StepShape
    job: CompileJob


@dataclass(frozen=True)
class Verified:
    """What came out of a check: a report, or why there is none; `cached`: it was known."""

    check: Check
    report: CompileReport | None
    refused: Mapping[str, str] | None
    cached: bool


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
                    "dtype": _DTYPES[row["weights"]],
                    "kv_dtype": _DTYPES[row["kv"]],
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
    """Compiles what is not known yet, one after another; a crash or a time-out is an answer like any other.

    Raises:
        DistaffError: what is wrong with all of them, such as a compiler that is not installed.
    """
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
                # The builder refuses: a backend that declines, a layout that it cannot run.
                if _concerns_all(error):
                    raise
                yield Verified(check, None, {"kind": "declined", "message": str(error)}, False)
            else:
                cache.put(check.job, report)
                yield Verified(check, report, None, False)


def compiled_row(row: Row, found: Sequence[Verified], request: SweepRequest, layout: Layout, on: Slice) -> Row:
    """A row with what was found about it."""
    steps: dict[str, Any] = {}
    reasons: list[str] = []
    for each in found:
        if each.report is None:
            assert each.refused is not None
            reasons.append(f"{each.check.phase}: {each.refused['kind']}: {each.refused['message']}")
            steps[each.check.phase] = {"refused": dict(each.refused)}
        else:
            steps[each.check.phase] = _step(row, each, each.report, request, layout, on)
    compilers = {each.report.compiler for each in found if each.report is not None}
    room = on.device_memory
    peaks = [step["peak_bytes"] for step in steps.values() if "peak_bytes" in step]
    if peaks and max(peaks) > room:
        reasons.append(f"compiled: needs {max(peaks) / 2**30:.2f} GiB, a device has {room / 2**30:.2f} GiB")
    return {
        **row,
        "evidence": "refused" if reasons else "compiled",
        "compiler": ", ".join(sorted(compilers)) or None,
        "compiled": steps,
        "reason": "; ".join(reasons) or None,
        "fits": row["fits"] and not any(is_memory(each) for each in found) and not (peaks and max(peaks) > room),
    }


def is_memory(found: Verified) -> bool:
    """Whether the compiler refused for want of memory."""
    return found.refused is not None and found.refused["kind"] == "hbm"


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The same order, but what the compiler refused, or takes for too large, behind everything else."""
    return sorted(rows, key=lambda row: (row["evidence"] == "refused", not row["fits"]))


def argument_bytes(config: ModelConfig, layout: Layout, row: Row, shape: StepShape, longest: int) -> int:
    """Of one device: weights, the pages of the rows' caches, and what is known of each row."""
    held = footprint(config, layout, _DTYPES[row["weights"]], _DTYPES[row["kv"]])
    pages = shape.rows * -(-longest // PAGE)
    state = RowState.empty(shape.rows, longest, config.vocab_size)
    tables = 4 * pages * len(config.cache_groups)
    return held.weights + pages * PAGE * held.cache_token + tables + sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _concerns_all(error: DistaffError) -> bool:
    from ...backends.compiler.errors import CompilerNotFoundError, SchedulesMissingError, UnknownTopologyError
    from ...backends.errors import UsageError

    if isinstance(error, UnknownTopologyError | CompilerNotFoundError | SchedulesMissingError):
        return True
    return not isinstance(error, UsageError)


def _step(
    row: Row, found: Verified, report: CompileReport, request: SweepRequest, layout: Layout, on: Slice
) -> dict[str, Any]:
    shape = found.check.shape
    predicted = predict(request.config, layout, shape, _DTYPES[row["weights"]])
    work = device_work(request.config, layout, on, decode=found.check.phase == "decode")
    compared = comparison(layout, predicted, report.collectives)
    memory = report.memory
    peak = memory.arguments + memory.temporaries + memory.outputs - memory.aliased
    links, at = Links(on, layout), request.efficiencies.best
    costs = [(each, links.cost(each.op, each.axes, ring=each.ring)) for each in used(predicted, cached=False)]
    sending = sum(
        each.count * cost.hops * at.hop_seconds
        + each.total * (cost.seconds_per_byte + cost.dcn_seconds_per_byte) / at.links
        for each, cost in costs
    )
    cycles = report.least_cycles
    kernels = sum(kernel.seconds * kernel.calls for kernel in report.kernels)
    expected = argument_bytes(request.config, layout, row, shape, max(request.workload.longest, shape.queries))
    estimate = None if cycles is None else cycles / on.chip.clock_hertz + kernels + sending
    counted = row[f"{found.check.phase}_ms"]["total"]
    return {
        "seconds": report.compile_seconds,
        "cached": found.cached,
        "arguments_bytes": memory.arguments,
        "predicted_arguments_bytes": expected,
        "temporary_bytes": memory.temporaries,
        "peak_bytes": peak,
        "sends_as_predicted": compared["agrees"],
        "sends": compared["compiled"],
        "flops": report.flops,
        "flops_by_predicted": report.flops / (work.linear * shape.num_tokens + work.head * shape.rows),
        "cycles": cycles,
        "sampled_cycles": report.estimated_cycles,
        "kernel_ms": kernels * 1e3,
        "links_ms": sending * 1e3,
        "estimate_ms": None if estimate is None else estimate * 1e3,
        "estimate_by_analytic": None if estimate is None or not counted else estimate * 1e3 / counted,
        "costliest": [
            {"name": each.name, "cycles": each.cycles, "count": each.count} for each in report.operations[:5]
        ],
        "unknown_loops": report.unknown_loops,
    }
