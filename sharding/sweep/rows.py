"""Candidates as rows: plain data for tables, files and reports."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..layout import Layout
from .plan import Scores
from .rank import meets, pareto
from .roofline import BOUNDS, Split

Row = dict[str, Any]


def rows_of(scores: Scores, numbers: Iterable[int]) -> list[Row]:
    """Rows of some candidates, in this order."""
    on_front, keeps = pareto(scores), meets(scores)
    bounds = scores.decode.bound_by, scores.prefill.bound_by
    made = [_row(scores, number, bool(on_front[number]), bool(keeps[number]), bounds) for number in numbers]
    return [{**row, "rank": rank} for rank, row in enumerate(made)]


def layout_table(layout: Layout) -> dict[str, Any]:
    """A layout as the YAML file that gives it has it."""
    tables = {"rules": layout.rules.as_dict(), "prefill": layout.prefill.as_dict()}
    kept: dict[str, Any] = {"mesh": dict(layout.mesh), **{name: table for name, table in tables.items() if table}}
    if layout.capacity is not None:
        kept["capacity"] = layout.capacity
    return kept


def _row(scores: Scores, n: int, on_front: bool, keeps: bool, bounds: tuple[Any, Any]) -> Row:
    request, placed = scores.request, scores.placed[scores.layout[n]]
    on = placed.slice
    what = {
        "hw": on.name,
        "layout": str(placed.layout),
        "batch": int(scores.batch[n]),
        "chunk": int(scores.chunk[n]),
        "weights": request.weights[scores.weights[n]],
        "activations": request.activations[scores.activations[n]],
        "kv": request.kv[scores.kv[n]],
    }
    room = on.device_memory
    return {
        "id": hashlib.sha256("|".join(map(str, what.values())).encode()).hexdigest()[:8],
        **what,
        "chips": on.num_chips,
        "replicas": placed.layout.replicas,
        "mesh": dict(placed.layout.mesh),
        "preset": placed.layout.preset,
        **_three("ttft_ms", scores.ttft, n),
        **_three("tpot_ms", scores.tpot, n),
        "tokens_per_second": _number(scores.throughput[1][n]),
        "tokens_per_second_per_chip": _number(scores.per_chip[n]),
        "dollars_per_million_tokens": _number(scores.dollars_per_million[n]),
        "tokens_per_joule": _number(scores.tokens_per_joule[n]),
        "memory_bytes": int(scores.memory[n]),
        "memory_room": room,
        "fits": bool(scores.fits[n]),
        "bound_by": BOUNDS[bounds[1][n] if request.phase == "prefill" else bounds[0][n]],
        "prefill_bound_by": BOUNDS[bounds[1][n]],
        "decode_ms": _split(scores.decode, n),
        "prefill_ms": _split(scores.prefill, n),
        "decode_sent_bytes": int(max(0.0, scores.sent[n])),
        "meets_targets": keeps,
        "pareto": on_front,
        "evidence": "analytic",
        "compiler": None,
        "compiled": None,
        "checked": None,
        "reason": None if scores.fits[n] else _too_large(int(scores.memory[n]), room),
    }


def _too_large(needed: int, room: int) -> str:
    return f"a device needs {needed / 2**30:.2f} GiB and has {room / 2**30:.2f} GiB"


def _three(name: str, values: tuple[Any, Any, Any], n: int) -> dict[str, float | None]:
    return {
        f"{name}_{which}": _number(value[n] * 1e3) for which, value in zip(("low", "best", "high"), values, strict=True)
    }


def _split(split: Split, n: int) -> dict[str, float | None]:
    return {part: _number(getattr(split, part)[n] * 1e3) for part in (*Split.PARTS, "total")}


def _number(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None
