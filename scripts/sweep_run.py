"""`distaff sweep run`: layouts on the devices that are here, predicted and measured."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import typer

from ..backends.errors import UsageError
from ..serving import LLM, SamplingParams
from ..sharding.layout import MESH_AXES, Layout
from ..sharding.sweep.agreement import SURE, kendall_tau, regret
from ..sharding.sweep.calibrate import Point
from ..sharding.sweep.microbench import Reached, measure
from ..sharding.sweep.models import model_config
from ..sharding.sweep.plan import Placed, score
from ..sharding.sweep.request import WIDTHS, SweepRequest, Workload
from ..sharding.sweep.roofline import Rates, Steps
from ..sharding.sweep.rows import Row, rows_of
from ..sharding.sweep.slices import Slice
from ..sharding.sweep.space import layouts
from ..sharding.sweep.store import Sweep, save
from ..sharding.sweep.sweep import asked_of

_MEMORY = 1 << 34


@dataclass(frozen=True)
class Ran:
    """What was predicted of layouts, and what they took."""

    request: SweepRequest
    placed: tuple[Placed, ...]
    reached: Reached
    rows: tuple[Row, ...]

    @property
    def points(self) -> list[Point]:
        """For calibrate: the layouts that ran."""
        work = self.request.workload
        keys = work.isl + work.osl / 2
        found: list[Point] = []
        for row, placed in zip(self.rows, self.placed, strict=True):
            if row["measured_ms"] is not None:
                rows = row["batch"] / row["replicas"]
                steps = Steps.one(
                    tokens=rows, rows=rows, keys=keys, read=rows * keys,
                    weight_bytes=WIDTHS[row["weights"]], cache_bytes=WIDTHS[row["kv"]],
                )  # fmt: skip
                rates = Rates.of(placed.slice.chip)
                found.append(Point(row["layout"], placed.decode, rates, steps, row["measured_ms"] / 1e3))
        return found


def run_layouts(
    model: str,
    *,
    devices: int,
    batch: int,
    isl: int,
    osl: int,
    rounds: int,
    most: int,
    presets: Sequence[str] | None,
    offline: bool,
) -> Ran:
    """Predicts by microbenchmarks alone, then runs the engine under each layout, round after round in turn.

    Raises:
        UsageError: no layout of so many devices splits the model.
    """
    config = model_config(model.removeprefix("random:"), offline=offline)
    reached = measure(devices)
    on = Slice(reached.chip(devices, _MEMORY), (devices,))
    chosen = [
        layout
        for layout in layouts(config, devices, MESH_AXES, "float32")
        if batch % layout.replicas == 0 and (presets is None or layout.preset in presets)
    ][:most]
    if not chosen:
        raise UsageError(f"no layout of {devices} devices splits {model} with a batch of {batch}")
    request = SweepRequest(
        model, config, (on,), Workload.of(isl, osl), "decode", (batch,), (isl,), ("fp32",), ("fp32",), ("fp32",),
        efficiencies=reached.efficiencies,
    )  # fmt: skip
    placed = tuple(Placed.of(request, layout, on) for layout in chosen)
    scores = score(request, placed)
    measured = _measured(model, chosen, batch=batch, isl=isl, osl=osl, rounds=rounds, offline=offline)
    rows = [
        {**row, "evidence": "refused", "reason": times, "measured_ms": None}
        if isinstance(times, str)
        else {**row, "evidence": "measured", "measured_ms": median(times) * 1e3}
        for row, times in zip(rows_of(scores, range(len(scores))), measured, strict=True)
    ]
    return Ran(request, placed, reached, tuple(rows))


def told_of(ran: Ran, out: Path | None) -> dict[str, Any]:
    """What `distaff sweep run` tells, the fastest first; kept in a folder as a sweep."""
    took = sorted((row for row in ran.rows if row["measured_ms"] is not None), key=lambda row: row["measured_ms"])
    both = [row["decode_ms"]["total"] for row in took], [row["measured_ms"] for row in took]
    tau, pairs = kendall_tau(*both)
    summary = {
        "candidates": len(ran.rows),
        "layouts": len(ran.rows),
        "fitting": len(took),
        "meeting_targets": len(took),
        "layout_seconds": 0.0,
        "score_seconds": 0.0,
        "efficiencies": "microbenchmarks",
        "kendall_tau": tau if pairs else None,
        "pairs": pairs,
        "regret": regret(*both) if took else None,
        "microbenchmarks": {name: getattr(ran.reached, name) for name in ran.reached.__dataclass_fields__},
    }
    rows = [*took, *(row for row in ran.rows if row["measured_ms"] is None)]
    if out is not None:
        save(Sweep(asked_of(ran.request), summary, rows, []), out)
    return {"summary": summary, "rows": rows}


def print_run(found: dict[str, Any]) -> None:
    """What `distaff sweep run` prints."""
    summary, rows = found["summary"], found["rows"]
    table = [("LAYOUT", "MEASURED MS", "PREDICTED MS", "BOUND BY", "")]
    for row in rows:
        measured = "-" if row["measured_ms"] is None else f"{row['measured_ms']:.2f}"
        table.append(
            (row["layout"], measured, f"{row['decode_ms']['total']:.2f}", row["bound_by"], (row["reason"] or "")[:80])
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if summary["pairs"]:
        typer.echo(
            f"Kendall's tau {summary['kendall_tau']:.2f} over the {summary['pairs']} pairs that differ by more than "
            f"{SURE:.0%}; the predicted best takes {summary['regret']:.0%} longer than the measured one"
        )


def _measured(
    model: str, chosen: Sequence[Layout], *, batch: int, isl: int, osl: int, rounds: int, offline: bool
) -> list[list[float] | str]:
    """Seconds of a decode step of each layout, a figure for each round; in words, why there is none."""
    engines: list[LLM | str] = []
    for layout in chosen:
        sys.stderr.write(f"Loading {layout}\n")
        try:
            engines.append(LLM(model, layout=str(layout), max_batch=batch, context=isl + osl, offline=offline or None))
        except Exception as error:  # a layout that does not run is a row, not the end
            engines.append(f"{type(error).__name__}: {error}")
    found: list[list[float] | str] = [each if isinstance(each, str) else [] for each in engines]
    for number in range(rounds + 1):
        for engine, times in zip(engines, found, strict=True):
            if isinstance(engine, str) or isinstance(times, str):
                continue
            whole, first = (_seconds(engine, batch, isl, tokens, seed=number) for tokens in (osl, 1))
            if number:  # the first round compiles
                times.append((whole - first) / (osl - 1))
    return found


def _seconds(engine: LLM, batch: int, isl: int, tokens: int, *, seed: int) -> float:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0)
    began = time.perf_counter()
    # Other prompts in each round and row, so that none is cached.
    streams = [
        engine.stream([(7 + seed * 31 + row * 13 + tokens + at * (row + 3)) % 200 + 1 for at in range(isl)], params)
        for row in range(batch)
    ]
    for stream in streams:
        for _ in stream:
            pass
    return time.perf_counter() - began
