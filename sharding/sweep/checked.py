"""What a compiler says about a row, beside what was predicted, and what the row is worth then.

Nothing is timed. Cycles are the compiler's own estimate of XLA's operations and of the schedules of kernels; it has
none for what is sent, which is therefore counted as everywhere else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...backends.compiler.report import CompileReport
from ...models.compress import rounded_as
from ...models.config import ModelConfig
from ...models.row_state import RowState
from ..arrange import arranged, rounded
from ..collectives import StepShape, predict
from ..footprint import cache_scales, footprint
from ..layout import Layout
from ..report import comparison
from .links import Links
from .pages import cache_lanes, page_size
from .precisions import KV_DTYPES, precision
from .rank import along_front, front
from .request import Objective, SweepRequest, Targets
from .rows import Row
from .served import served
from .slices import Slice
from .verify import UNAVAILABLE, Verified
from .work import device_work, used


def compiled_row(row: Row, found: Sequence[Verified], request: SweepRequest, layout: Layout, on: Slice) -> Row:
    """A row with what was found about it.

    `checked` has its times anew: of each step the longer of what was counted and of what the compiler estimates.
    """
    steps: dict[str, Any] = {}
    reasons: list[str] = []
    for each in found:
        if each.report is not None:
            steps[each.check.phase] = _step(row, each, each.report, request, layout, on)
            continue
        assert each.refused is not None
        if each.refused["kind"] == UNAVAILABLE:
            return {**row, "reason": f"not compiled: {each.refused['message']}"}
        buffers = _largest(_arguments(row, each, request, layout, on))
        largest = ", ".join(f"{buffer['name']} {buffer['bytes'] / 2**30:.2f} GiB" for buffer in buffers[:3])
        reasons.append(
            f"{each.check.phase}: {each.refused['kind']}: {each.refused['message']}"
            + (f"; largest arguments: {largest}" if is_memory(each) else "")
        )
        steps[each.check.phase] = {"refused": dict(each.refused), "largest_buffers": buffers}
    compilers = {each.report.compiler for each in found if each.report is not None}
    room = on.device_memory
    peak = max((step["peak_bytes"] for step in steps.values() if "peak_bytes" in step), default=0)
    if peak > room:
        reasons.append(f"compiled: needs {peak / 2**30:.2f} GiB, a device has {room / 2**30:.2f} GiB")
    return {
        **row,
        "evidence": "refused" if reasons else "compiled",
        "compiler": ", ".join(sorted(compilers)) or None,
        "compiled": steps,
        "checked": None if reasons else _checked(row, steps, request, layout, on),
        "reason": "; ".join(reasons) or None,
        "pareto": row["pareto"] and not reasons,
        "fits": not any(is_memory(each) for each in found) and peak <= room,
    }


def is_memory(found: Verified) -> bool:
    """Whether the compiler refused for want of memory."""
    return found.refused is not None and found.refused["kind"] == "hbm"


def ordered(rows: Sequence[Row], objective: Objective, *, prefill: bool) -> list[Row]:
    """What a compiler accepted, by what it is worth then; what none has seen, as it was; what one refused, or takes for
    too large, last."""
    accepted = [row for row in rows if row["evidence"] == "compiled" and row["fits"]]
    refused = [row for row in rows if row["evidence"] == "refused" or not row["fits"]]
    named = {row["id"] for row in (*accepted, *refused)}
    rest = [row for row in rows if row["id"] not in named]
    return [*_by_worth(accepted, objective, prefill=prefill), *rest, *sorted(refused, key=lambda row: row["rank"])]


def argument_buffers(
    config: ModelConfig, layout: Layout, row: Row, shape: StepShape, longest: int, *, page: int, lanes: int
) -> dict[str, int]:
    """Bytes of what a step is given, on one device: weights, the pages of the rows' caches, what is known of rows."""
    served, kv_dtype = precision(row), KV_DTYPES[row["kv"]]
    form = rounded_as(served.quantize, config)
    held = rounded(arranged(form.config, layout, served.dtype), form.roundings)
    weights = {path: sum(each.num_bytes for each in jax.tree.leaves(leaf)) for path, leaf in held.items()}
    pages = shape.rows * -(-longest // page)
    position = footprint(config, layout, served.dtype, kv_dtype, lanes=lanes).cache_token
    if jnp.dtype(kv_dtype).itemsize == 1:
        position += 4 * cache_scales(config, layout)
    state = RowState.empty(shape.rows, longest, config.vocab_size)
    return weights | {
        "KV cache": pages * page * position,
        "page tables": 4 * pages * len(config.cache_groups),
        "parameters and texts of rows": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    }


def _largest(buffers: Mapping[str, int]) -> list[dict[str, Any]]:
    found = sorted(buffers.items(), key=lambda each: -each[1])[:_MOST_BUFFERS]
    return [{"name": name, "bytes": size} for name, size in found]


_MOST_BUFFERS = 5


def _by_worth(rows: Sequence[Row], objective: Objective, *, prefill: bool) -> list[Row]:
    if not rows:
        return []
    of = {name: np.array([_number(row["checked"][name]) for row in rows]) for name in _SHOWN}
    wait, per_chip = of["ttft_ms" if prefill else "tpot_ms"], of["tokens_per_second_per_chip"]
    late = ~np.array([row["checked"]["meets_targets"] for row in rows])
    on_front = front(wait, per_chip, ~late)
    value = {
        "latency": wait,
        "throughput": -per_chip,
        "cost": of["dollars_per_million_tokens"],
        "energy": -of["tokens_per_joule"],
        "pareto": along_front(wait, per_chip, on_front),
    }[objective]
    order = np.lexsort((-per_chip, np.where(np.isnan(value), np.inf, value), late))
    return [{**rows[number], "pareto": bool(on_front[number])} for number in order]


_SHOWN = ("ttft_ms", "tpot_ms", "tokens_per_second_per_chip", "dollars_per_million_tokens", "tokens_per_joule")


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _checked(row: Row, steps: Mapping[str, Any], request: SweepRequest, layout: Layout, on: Slice) -> dict[str, Any]:
    """A compiler's estimate leaves out what it cannot price (copies that run beside arithmetic), and so is a bound from
    below, as what was counted is: the longer one stands."""

    def longer(phase: str) -> float:
        estimate = steps.get(phase, {}).get("estimate_ms")
        return max(row[f"{phase}_ms"]["total"], estimate or 0.0) / 1e3

    decode, prefill = longer("decode"), longer("prefill")
    seen = served(
        request.phase, request.workload, decode, prefill,
        rows=row["batch"] / layout.replicas, chunk=row["chunk"], replicas=layout.replicas,
    )  # fmt: skip
    ttft, tpot, tokens = float(seen.ttft), float(seen.tpot), float(seen.throughput)
    dollars, watts = on.chip.dollars_per_hour, on.chip.watts
    return {
        "ttft_ms": ttft * 1e3,
        "tpot_ms": tpot * 1e3,
        "tokens_per_second": tokens,
        "tokens_per_second_per_chip": tokens / on.num_chips,
        "dollars_per_million_tokens": None if dollars is None else dollars * on.num_chips / 3600 / tokens * 1e6,
        "tokens_per_joule": None if watts is None else tokens / (watts * on.num_chips),
        "meets_targets": _meets(request.targets, ttft, tpot),
    }


def _meets(targets: Targets, ttft: float, tpot: float) -> bool:
    return (targets.ttft is None or ttft <= targets.ttft) and (targets.tpot is None or tpot <= targets.tpot)


def _arguments(row: Row, found: Verified, request: SweepRequest, layout: Layout, on: Slice) -> dict[str, int]:
    shape = found.check.shape
    longest = max(request.workload.longest, shape.queries)
    page, lanes = page_size(on.chip.platform), cache_lanes(on.chip.platform)
    return argument_buffers(request.config, layout, row, shape, longest, page=page, lanes=lanes)


def _step(
    row: Row, found: Verified, report: CompileReport, request: SweepRequest, layout: Layout, on: Slice
) -> dict[str, Any]:
    shape, served = found.check.shape, precision(row)
    form = rounded_as(served.quantize, request.config)
    config = form.config
    buffers = _arguments(row, found, request, layout, on)
    predicted = predict(config, layout, shape, served.dtype, quantizer=form.made, chips=on.shape)
    work = device_work(config, layout, on, decode=found.check.phase == "decode")
    # What kernels multiply is not among the compiler's FLOPs.
    linear = work.linear - (work.routed if any("grouped_matmul" in kernel.name for kernel in report.kernels) else 0.0)
    compared = comparison(layout, predicted, report.collectives)
    memory = report.memory
    # A prompt is computed beside the caches of the rows that wait meanwhile.
    others = 0
    if request.phase == "both":
        others = row["batch"] // layout.replicas - shape.rows
    waiting = others * buffers["KV cache"] // shape.rows
    peak = memory.arguments + memory.temporaries + memory.outputs - memory.aliased + waiting
    links, at = Links(on, layout), request.efficiencies.best
    sending = sum(links.seconds(each, at) for each in used(predicted, cached=False))
    cycles = report.least_cycles
    kernels = sum(kernel.seconds * kernel.calls for kernel in report.kernels)
    estimate = None if cycles is None else cycles / on.chip.clock_hertz + kernels + sending
    counted = row[f"{found.check.phase}_ms"]["total"]
    return {
        "seconds": report.compile_seconds,
        "cached": found.cached,
        "arguments_bytes": memory.arguments,
        "predicted_arguments_bytes": sum(buffers.values()),
        "temporary_bytes": memory.temporaries,
        "peak_bytes": peak,
        "largest_buffers": _largest({**buffers, "temporaries": memory.temporaries}),
        "sends_as_predicted": compared["agrees"],
        "predicted_sends": compared["predicted"],
        "sends": compared["compiled"],
        "flops": report.flops,
        "flops_by_predicted": report.flops / (linear * shape.num_tokens + work.head * shape.rows),
        "cycles": cycles,
        "sampled_cycles": report.estimated_cycles,
        "kernel_ms": kernels * 1e3,
        "kernels": [{"name": each.name, "cycles": each.cycles, "calls": each.calls} for each in report.kernels],
        "links_ms": sending * 1e3,
        "estimate_ms": None if estimate is None else estimate * 1e3,
        "estimate_by_analytic": None if estimate is None or not counted else estimate * 1e3 / counted,
        "costliest": [
            {"name": each.name, "cycles": each.cycles, "count": each.count} for each in report.operations[:5]
        ],
        "unknown_loops": report.unknown_loops,
    }
