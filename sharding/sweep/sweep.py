"""From a request to a sweep."""

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from .errors import NothingFitsError, SweepError
from .pairs import pairs_of
from .plan import Scores, place, score
from .rank import meets, order, shown
from .request import SweepRequest
from .rows import rows_of
from .slices import Slice
from .store import Sweep

MOST_ROWS = 200
_MOST_PAIRS = 20


def plan(request: SweepRequest, *, most: int = MOST_ROWS) -> Sweep:
    """Scores every candidate and keeps the best `most`, and the best of each layout.

    Raises:
        NothingFitsError: no candidate fits; the message says by how much, and the smallest slice that would do.
        SweepError: figures of the chips are missing that the request needs.
    """
    for on in request.slices:
        if not np.isfinite(on.chip.device_flops()):
            raise SweepError(f"{on.name}: its dense peak is not known; give it with --set {on.chip.name}.flops=N")
    began = time.perf_counter()
    placed = place(request)
    ready = time.perf_counter()
    scores = score(request, placed)
    scored = time.perf_counter()
    if not scores.fits.any():
        raise NothingFitsError(_too_small(request, scores))
    ordered = order(scores, request.objective)
    rows = rows_of(scores, shown(scores, ordered, most))
    pairs = pairs_of(request, placed, most=_MOST_PAIRS)
    summary: dict[str, Any] = {
        "candidates": len(scores),
        "layouts": len(placed),
        "fitting": int(scores.fits.sum()),
        "meeting_targets": int((scores.fits & meets(scores)).sum()),
        "layout_seconds": ready - began,
        "score_seconds": scored - ready,
        "efficiencies": request.efficiencies.origin,
        "distaff": version("distaff"),
    }
    return Sweep(asked_of(request), summary, rows, pairs)


def asked_of(request: SweepRequest) -> dict[str, Any]:
    """A request as JSON."""
    at = request.efficiencies
    return {
        "model": request.model,
        "hw": [on.name for on in request.slices],
        "phase": request.phase,
        "isl": request.workload.isl,
        "osl": request.workload.osl,
        "longest": request.workload.longest,
        "batches": list(request.batches),
        "chunks": list(request.chunks),
        "weights": list(request.weights),
        "activations": list(request.activations),
        "kv": list(request.kv),
        "axes": list(request.axes),
        "objective": request.objective,
        "slo_ttft_ms": None if request.targets.ttft is None else request.targets.ttft * 1e3,
        "slo_tpot_ms": None if request.targets.tpot is None else request.targets.tpot * 1e3,
        "efficiencies": {name: getattr(at, name).as_dict() for name in ("low", "best", "high")} | {"origin": at.origin},
        "chips": {on.chip.name: on.chip.as_dict() for on in request.slices},
    }


def _too_small(request: SweepRequest, scores: Scores) -> str:
    """By how much the model is too large, and the smallest slice that fits."""
    said: list[str] = []
    for on in request.slices:
        own = np.array([each.slice is on for each in scores.placed])[scores.layout]
        if not own.any():
            said.append(f"no layout of {on.name} splits it")
            continue
        number = int(np.flatnonzero(own)[np.argmin(scores.memory[own])])
        least, room = scores.memory[number] / 2**30, on.device_memory / 2**30
        named = f"{scores.placed[scores.layout[number]].layout}, batch {scores.batch[number]:.0f}"
        smallest = next(_fitting(request, on), None)
        advice = f"; the smallest {on.chip.name} slice that fits is {smallest.name}" if smallest else ""
        said.append(
            f"{on.name}: a device needs at least {least:.2f} GiB ({named}) and has {room:.2f} GiB, "
            f"{least - room:.2f} GiB too little{advice}"
        )
    return f"{request.model} does not fit: " + "; ".join(said)


_GRIDS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
}


def _fitting(request: SweepRequest, on: Slice) -> Iterator[Slice]:
    if on.chip.fabric == "torus":
        grids = _GRIDS[on.chip.torus_axes or 2]
    else:
        grids = tuple((count,) for count in (1, 2, 4, 8) if count <= (on.chip.node_chips or 8))
    for grid in grids:
        larger = replace(on, shape=grid, count=1)
        if larger.num_chips > on.num_chips:
            least = replace(request, slices=(larger,), batches=(min(request.batches),), chunks=(min(request.chunks),))
            try:
                if score(least).fits.any():
                    yield larger
            except NothingFitsError:
                continue
