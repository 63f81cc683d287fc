"""Sweeps for people: the best rows as a table, and the Pareto front drawn with characters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from .output import size_text

_WIDTH, _HEIGHT = 64, 14

Row = Mapping[str, Any]


def print_sweep(sweep: Any, *, top: int) -> None:
    """What `distaff sweep plan` prints."""
    asked, summary, rows = sweep.asked, sweep.summary, sweep.rows
    seconds = summary["layout_seconds"] + summary["score_seconds"]
    typer.echo(
        f"{asked['model']} on {', '.join(asked['hw'])}: {summary['candidates']} candidates of {summary['layouts']} "
        f"layouts in {seconds:.1f} s, {summary['fitting']} fit"
    )
    typer.echo(
        f"prompts of {asked['isl']:g} tokens, answers of {asked['osl']:g}; ordered for {asked['objective']}; times are "
        f"{_evidence(rows)}\n"
    )
    prefill = asked["phase"] == "prefill"
    print_rows([row for row in rows if row["fits"]][:top], prefill=prefill)
    plot = draw_front(rows, prefill=prefill)
    if plot:
        typer.echo("\n" + "\n".join(plot))
    if asked["slo_ttft_ms"] or asked["slo_tpot_ms"]:
        typer.echo("\n" + targets_text(asked, rows))
    if sweep.pairs:
        best = sweep.pairs[0]
        typer.echo(
            f"\nprefill and decode apart, best: prefill {best['prefill_hw']} {best['prefill_layout']} x "
            f"{best['prefill_slices_per_decode_slice']:.2f}, decode {best['decode_hw']} {best['decode_layout']} batch "
            f"{best['batch']}: {best['ttft_ms_best']:.0f} ms to the first token ({best['kv_move_ms']:.1f} of them move "
            f"the cache), {best['tpot_ms_best']:.2f} ms a token, {best['tokens_per_second_per_chip']:.0f} tok/s/chip"
        )


def print_rows(rows: Sequence[Row], *, prefill: bool) -> None:
    """The table."""
    wait = "ttft" if prefill else "tpot"
    head = ("ID", "HW", "LAYOUT", "BATCH", "CHUNK", "W/A/KV", "TTFT MS", f"{wait.upper()} LOW", "BEST", "HIGH",
            "TOK/S/CHIP", "$/MTOK", "TOK/J", "MEMORY", "BOUND BY", "EVIDENCE")  # fmt: skip
    table = [
        (
            f"{'*' if row['pareto'] else ' '}{row['id']}",
            row["hw"],
            row["layout"],
            str(row["batch"]),
            str(row["chunk"]),
            _precisions(row),
            _text(row["ttft_ms_best"], ".1f"),
            *(_text(row[f"{wait}_ms_{which}"], ".2f") for which in ("low", "best", "high")),
            _text(row["tokens_per_second_per_chip"], ".0f"),
            _text(row["dollars_per_million_tokens"], ".3f"),
            _text(row["tokens_per_joule"], ".2f"),
            f"{row['memory_bytes'] / row['memory_room']:.0%}",
            row["bound_by"],
            row["evidence"] + (f": {row['reason']}" if row["reason"] else ""),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    for line in (head, *table):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _precisions(row: Row) -> str:
    """Of weights, activations and cache; once where they are the same."""
    held = (row["weights"], row["activations"], row["kv"])
    return held[0] if len(set(held)) == 1 else "/".join(held)


def draw_front(rows: Sequence[Row], *, prefill: bool = False) -> list[str]:
    """Latency to the right, tokens for each chip upwards, both on logarithmic scales: `*` the front, `.` the rest."""
    wait = f"{'ttft' if prefill else 'tpot'}_ms_best"
    points = [
        (math.log10(row[wait]), math.log10(row["tokens_per_second_per_chip"]), row["pareto"])
        for row in rows
        if row["fits"] and row[wait] and row["tokens_per_second_per_chip"]
    ]
    if len(points) < 2:
        return []
    low, high = (
        (min(p[0] for p in points), min(p[1] for p in points)),
        (max(p[0] for p in points), max(p[1] for p in points)),
    )
    canvas = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for x, y, on_front in sorted(points, key=lambda point: point[2]):
        column = round((x - low[0]) / (high[0] - low[0] or 1) * (_WIDTH - 1))
        line = round((y - low[1]) / (high[1] - low[1] or 1) * (_HEIGHT - 1))
        canvas[_HEIGHT - 1 - line][column] = "*" if on_front else "."
    top, bottom = f"{10 ** high[1]:.3g}", f"{10 ** low[1]:.3g}"
    margin = max(len(top), len(bottom))
    labels = [top, *[""] * (_HEIGHT - 2), bottom]
    drawn = [f"{label:>{margin}} |{''.join(cells).rstrip()}" for label, cells in zip(labels, canvas, strict=True)]
    first, last = f"{10 ** low[0]:.3g}", f"{10 ** high[0]:.3g}"
    return [
        "tokens/s for each chip; * nothing is better in both",
        *drawn,
        f"{'':{margin}} +{'-' * _WIDTH}",
        f"{'':{margin}}  {first}{last:>{_WIDTH - len(first)}} ms {'to the first token' if prefill else 'a token'}",
    ]


def targets_text(asked: Row, rows: Sequence[Row]) -> str:
    """How many rows meet the targets; if none does, the nearest and what they miss."""
    limits = {"ttft": asked["slo_ttft_ms"], "tpot": asked["slo_tpot_ms"]}
    said = " and ".join(f"{name} <= {limit:g} ms" for name, limit in limits.items() if limit)
    fitting = [row for row in rows if row["fits"]]
    kept = [row for row in fitting if row["meets_targets"]]
    if kept:
        return f"{said}: {len(kept)} of {len(fitting)} rows meet it"

    def missed(row: Row) -> dict[str, float]:
        return {
            name: row[f"{name}_ms_best"] / limit
            for name, limit in limits.items()
            if limit and row[f"{name}_ms_best"] > limit
        }

    near = sorted(fitting, key=lambda row: max(missed(row).values(), default=0.0))[:3]
    lines = [
        f"  {row['id']} {row['layout']} batch {row['batch']}: "
        + ", ".join(
            f"{name} {row[f'{name}_ms_best']:.1f} ms ({ratio:.2f} times)" for name, ratio in missed(row).items()
        )
        for row in near
    ]
    return "\n".join([f"{said}: no candidate meets it; nearest:", *lines])


def print_explained(explained: Row) -> None:
    """What `distaff sweep explain` prints."""
    row = explained["row"]
    typer.echo(f"{row['id']}  {row['hw']}  {row['layout']}  batch {row['batch']}  {row['evidence']}")
    for phase in ("decode", "prefill"):
        split = row[f"{phase}_ms"]
        parts = ", ".join(f"{name} {share:.0%}" for name, share in explained[f"{phase}_shares"].items())
        typer.echo(f"a {phase} step takes {split['total']:.2f} ms: {parts}")
    typer.echo(
        f"decode is bound by {row['bound_by']}; a device holds {size_text(row['memory_bytes'])} of "
        f"{size_text(row['memory_room'])} and sends {size_text(row['decode_sent_bytes'])} in a decode step"
    )
    typer.echo(f"{explained['advice']}\n")
    head = ("WITH", "TTFT MS", "TPOT MS", "TOK/S/CHIP", "FITS", "BOUND BY")
    table = [
        (each["change"], _text(each["ttft_ms_best"], ".1f"), _text(each["tpot_ms_best"], ".2f"),
         _text(each["tokens_per_second_per_chip"], ".0f"), "yes" if each["fits"] else "no", each["bound_by"])
        for each in ({"change": "as it is", **row}, *explained["changes"])
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
    for line in (head, *table):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_diff(first: Row, second: Row) -> None:
    """Two rows beside each other, with the ratio of their numbers; what is the same is left out."""
    names = [name for name in first if first[name] != second.get(name)]
    table = [("", first["id"], second["id"], "RATIO")]
    for name in names:
        a, b = first[name], second[name]
        numbers = isinstance(a, int | float) and isinstance(b, int | float) and not isinstance(a, bool) and a
        table.append((name, _cell(a), _cell(b), f"{b / a:.3f}" if numbers else ""))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _evidence(rows: Sequence[Row]) -> str:
    if all(row["evidence"] == "measured" for row in rows):
        return "measured"
    return "estimates that no chip has confirmed, unless the last column says measured"
