"""Scores every candidate of a request by arithmetic.

A candidate is a layout of a slice with a batch, a chunk of prefill and three precisions. All of them are scored at
once, as arrays; only those that are shown become rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..layout import Layout
from .errors import NothingFitsError
from .memory import memory_bytes
from .pages import page_size
from .request import WIDTHS, SweepRequest
from .roofline import Bools, Columns, Floats, Ints, Rates, Split, Steps, step_seconds
from .served import prompt_steps, served
from .slices import Slice
from .space import layouts
from .work import DeviceWork, device_work


@dataclass(frozen=True)
class Placed:
    """A layout on a slice, with what its devices do in both phases."""

    slice: Slice
    layout: Layout
    decode: DeviceWork
    prefill: DeviceWork

    @classmethod
    def of(cls, request: SweepRequest, layout: Layout, on: Slice) -> "Placed":
        # What is sent is as wide as activations; those of 8 bits are widened before they are.
        dtype = "float32" if set(request.activations) == {"fp32"} else "bfloat16"
        works = [device_work(request.config, layout, on, decode=decode, dtype=dtype) for decode in (True, False)]
        return cls(on, layout, works[0], works[1])


@dataclass(frozen=True)
class Scores:
    """Candidates, an entry each.

    Args:
        placed: what `layout` points to.
        layout, batch, chunk, weights, activations, kv: what a candidate is; precisions by their place in the request.
        decode, prefill: seconds of one step, by what they go to, at the best guess.
        ttft, tpot: seconds until a prompt's first token and between tokens: low, best and high.
        throughput: tokens each second of the whole slice: generated ones, or those of prompts where prefill alone is
            asked.
        memory: bytes of a device; fits: whether it has them.
    """

    request: SweepRequest
    placed: tuple[Placed, ...]
    layout: Ints
    batch: Floats
    chunk: Floats
    weights: Ints
    activations: Ints
    kv: Ints
    decode: Split
    prefill: Split
    ttft: tuple[Floats, Floats, Floats]
    tpot: tuple[Floats, Floats, Floats]
    throughput: tuple[Floats, Floats, Floats]
    memory: Floats
    fits: NDArray[np.bool_]
    chips: Floats
    dollars: Floats
    watts: Floats
    sent: Floats = field(repr=False)

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def per_chip(self) -> Floats:
        """Tokens each second for each chip."""
        return self.throughput[1] / self.chips

    @property
    def dollars_per_million(self) -> Floats:
        """Of tokens; nan where the price of the chips is not known."""
        return self.dollars * self.chips / 3600 / self.throughput[1] * 1e6

    @property
    def tokens_per_joule(self) -> Floats:
        """By the chips' maximum power; nan where that is not published."""
        return self.throughput[1] / (self.watts * self.chips)


def place(request: SweepRequest) -> tuple[Placed, ...]:
    """Every layout of every slice.

    Raises:
        NothingFitsError: the model cannot be split over any of them.
    """
    found: list[Placed] = []
    known: dict[tuple[int, tuple[str, ...]], list[Layout]] = {}
    for on in request.slices:
        key = (on.num_devices, request.axes)
        if key not in known:
            known[key] = layouts(request.config, *key)
        for layout in known[key]:
            each = Placed.of(request, layout, on)
            if np.isfinite(each.decode.sends.hops) and np.isfinite(each.prefill.sends.hops):
                found.append(each)
    if not found:
        names = ", ".join(on.name for on in request.slices)
        raise NothingFitsError(
            f"no layout of {names} splits {request.model} along {', '.join(request.axes)}; the links between them may "
            "be unknown too (distaff hardware)"
        )
    return tuple(found)


def score(request: SweepRequest, placed: tuple[Placed, ...] | None = None) -> Scores:
    """Scores every candidate; see Scores. `placed`: what place(request) gave."""
    placed = place(request) if placed is None else placed
    # A step of prompts has as many as its chunk holds: how many rows are decoded elsewhere does not matter.
    batches = (1,) if request.phase == "prefill" else request.batches
    axes = (
        np.arange(len(placed)), np.array(batches, float), np.array(request.chunks, float),
        np.arange(len(request.weights)), np.arange(len(request.activations)), np.arange(len(request.kv)),
    )  # fmt: skip
    grids = [grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")]
    replicas = np.array([each.layout.replicas for each in placed], float)
    if request.phase == "prefill":
        grids[1] = replicas[grids[0].astype(int)]
    own = grids[1] % replicas[grids[0].astype(int)] == 0  # each replica has as many rows
    layout, weights, activations, kv = (grids[axis][own].astype(int) for axis in (0, 3, 4, 5))
    batch, chunk = (grids[axis][own].astype(float) for axis in (1, 2))
    widths = {
        what: np.array([WIDTHS[name] for name in getattr(request, what)], float)
        for what in ("weights", "activations", "kv")
    }
    w, a, k = widths["weights"][weights], widths["activations"][activations], widths["kv"][kv]
    narrow = (w <= 1) & (a <= 1)
    turned = _named(request.weights, "int8")[weights] & _named(request.activations, "int8")[activations]
    work = request.workload
    rows = batch / replicas[layout]
    decode_steps = Steps(
        tokens=rows, rows=rows, keys=np.full_like(rows, work.isl + work.osl / 2),
        read=rows * (work.isl + work.osl / 2), weight_bytes=w, cache_bytes=k, narrow=narrow,
    )  # fmt: skip
    steps_of_prompt, prompts = prompt_steps(work.isl, chunk)
    tokens = np.where(steps_of_prompt > 1, work.isl / steps_of_prompt, prompts * work.isl)
    prefill_steps = Steps(
        tokens=tokens, rows=prompts, keys=np.full_like(rows, work.isl / 2),
        read=prompts * work.isl * (steps_of_prompt + 1) / (2 * steps_of_prompt),
        weight_bytes=w, cache_bytes=k, narrow=narrow,
    )  # fmt: skip
    of = {name: _columns(placed, name).take(layout) for name in ("decode", "prefill")}
    splits = [
        (step_seconds(of["decode"], decode_steps, at), step_seconds(of["prefill"], prefill_steps, at))
        for at in (request.efficiencies.low, request.efficiencies.best, request.efficiencies.high)
    ]
    each_way = [
        served(request.phase, work, decode.total, prefill.total, rows=rows, chunk=chunk, replicas=replicas[layout])
        for decode, prefill in splits
    ]
    ttft, tpot, throughput = zip(*((each.ttft, each.tpot, each.throughput) for each in each_way), strict=True)
    page = np.array([page_size(each.slice.chip.platform) for each in placed], float)[layout]
    memory = memory_bytes(
        of["decode"], of["prefill"], rows, tokens, prompts, work.longest, page, w, k, turned, phase=request.phase
    )
    room = np.array([each.slice.device_memory for each in placed], float)[layout]
    chips = np.array([each.slice.num_chips for each in placed], float)[layout]
    dollars = np.array([each.slice.chip.dollars_per_hour or np.nan for each in placed], float)[layout]
    watts = np.array([each.slice.chip.watts or np.nan for each in placed], float)[layout]
    return Scores(
        request, placed, layout, batch, chunk, weights, activations, kv, splits[1][0], splits[1][1],
        _of3(ttft), _of3(tpot), _of3(throughput), memory, memory <= room, chips, dollars, watts,
        of["decode"]["sent_fixed"] + of["decode"]["sent_each"] * rows,
    )  # fmt: skip


def _named(names: Sequence[str], name: str) -> Bools:
    return np.array([each == name for each in names])


def _of3(found: tuple[Floats, ...]) -> tuple[Floats, Floats, Floats]:
    return found[0], found[1], found[2]


def _columns(placed: tuple[Placed, ...], phase: str) -> Columns:
    return Columns.of([getattr(each, phase) for each in placed], [Rates.of(each.slice.chip) for each in placed])
