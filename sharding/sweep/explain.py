"""Why a row is as fast as it is, and what would change that: the same arithmetic with one thing different."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...backends.hardware import Chip
from ..layout import Layout
from .plan import Placed, score
from .request import SweepRequest
from .rows import Row, rows_of
from .slices import Slice


def only(request: SweepRequest, row: Row, layout: Layout, on: Slice) -> SweepRequest:
    """A request that has this row as its only candidate."""
    return replace(
        request,
        slices=(on,),
        batches=(row["batch"],),
        chunks=(row["chunk"],),
        weights=(row["weights"],),
        activations=(row["activations"],),
        kv=(row["kv"],),
    )


def one(request: SweepRequest, layout: Layout, on: Slice) -> Row:
    """The row of a layout under a request with one candidate."""
    (row,) = rows_of(score(request, (Placed.of(request, layout, on),)), [0])
    return row


def counterfactuals(request: SweepRequest, row: Row, layout: Layout, on: Slice) -> list[dict[str, Any]]:
    """What else would be, with one thing changed: times, tokens for each chip, and memory."""
    base = only(request, row, layout, on)
    found: list[dict[str, Any]] = []
    for what, changed, there in _changes(base, row, on):
        if changed.batches[0] % layout.replicas:
            continue
        made = one(replace(changed, slices=(there,)), layout, there)
        found.append({"change": what, **{name: made[name] for name in _SHOWN}})
    return found


_SHOWN = ("ttft_ms_best", "tpot_ms_best", "tokens_per_second_per_chip", "memory_bytes", "fits", "bound_by")


def _changes(base: SweepRequest, row: Row, on: Slice) -> Iterator[tuple[str, SweepRequest, Slice]]:
    chip = on.chip
    for what, faster in _faster(chip):
        yield what, base, replace(on, chip=faster)
    batch = row["batch"]
    if batch > 1:
        yield "half the batch", replace(base, batches=(batch // 2,)), on
    yield "twice the batch", replace(base, batches=(batch * 2,)), on
    if row["kv"] in ("bf16", "fp32"):
        yield "8-bit KV cache", replace(base, kv=("int8",)), on
    if row["weights"] in ("bf16", "fp32"):
        yield "8-bit weights", replace(base, weights=("int8",)), on
        yield "8-bit weights and arithmetic", replace(base, weights=("int8",), activations=("int8",)), on


def _faster(chip: Chip) -> Iterator[tuple[str, Chip]]:
    yield "twice the FLOP/s", replace(chip, flops={dtype: 2 * flops for dtype, flops in chip.flops.items()})
    yield "twice the memory bandwidth", replace(chip, hbm_bytes_per_second=2 * chip.hbm_bytes_per_second)
    if chip.link_bytes_per_second:
        yield "twice the links", replace(chip, link_bytes_per_second=2 * chip.link_bytes_per_second)


def shares(split: dict[str, float | None]) -> dict[str, float]:
    """The fraction of a step's time that each part is; parts that overlap are counted by the longer of them."""
    total = split["total"] or 1.0
    value = {name: each or 0.0 for name, each in split.items()}
    longer = {
        "maths" if value["maths"] >= value["weights"] else "HBM weights": max(value["maths"], value["weights"]),
        "attention maths" if value["scores"] >= value["cache"] else "HBM KV": max(value["scores"], value["cache"]),
        "ICI": value["links"],
        "DCN": value["between"],
        "latency": value["latency"],
    }
    return {name: each / total for name, each in longer.items() if each > 0}


def advice(row: Row, changes: list[dict[str, Any]], phase: str) -> str:
    """The change that helps most, in words."""
    name = "ttft_ms_best" if phase == "prefill" else "tpot_ms_best"
    fitting = [each for each in changes if each["fits"] and each[name] is not None]
    if not fitting:
        return "no change that fits was counted"
    best = min(fitting, key=lambda each: each[name])
    gain = row[name] - best[name]
    most = max(fitting, key=lambda each: each["tokens_per_second_per_chip"] or 0.0)
    ratio = (most["tokens_per_second_per_chip"] or 0.0) / row["tokens_per_second_per_chip"]
    waits = "the first token" if phase == "prefill" else "each token"
    return (
        f"{best['change']} would save most of {waits}: {gain:.2f} of {row[name]:.2f} ms, and then {best['bound_by']} "
        f"binds; {most['change']} gives most tokens for each chip: {ratio:.2f} times as many"
    )
