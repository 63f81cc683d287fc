"""Pictures of a run and of a sweep: a PNG, and an HTML page that holds the same picture and the figures.

matplotlib draws them (extra `plots`); nothing of it is needed for anything else.
"""

import html
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ...backends.errors import UsageError
from .record import Record
from .statistics import duration_of

Report = Mapping[str, Any]
Axes = Any

_BINS = 60
_INK = ("#1b6ca8", "#e07a1f", "#7a3e9d")
_STYLE = "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em}td,th{padding:.1em 1em;text-align:right}"


def check_plots() -> None:
    """Raises UsageError where matplotlib is not installed: better before a long run than after it."""
    _figure_class()


def plot_run(path: Path, title: str, records: Sequence[Record], report: Report) -> list[Path]:
    """Draws how one run's times are distributed and how it went over time."""
    figure = _figure_class()(figsize=(11, 7), layout="constrained")
    upper, lower = figure.subplots(2, 2)
    ended = [record for record in records if record.succeeded]
    _shares(upper[0], "time to first token, ms", [record.ttft for record in ended], 0)
    _shares(upper[1], "between tokens of a request, ms", [gap for record in ended for gap in record.gaps], 1)
    _over_time(lower[0], lower[1], records)
    return _save(path, figure, title, [report])


def plot_sweep(path: Path, title: str, found: Report) -> list[Path]:
    """Draws how times, throughput and goodput change with the rate."""
    figure = _figure_class()(figsize=(11, 7), layout="constrained")
    points = found["points"]
    rates = [point["rate"] for point in points]
    upper, lower = figure.subplots(2, 2)
    for axes, name, label in ((upper[0], "ttft_ms", "time to first token"), (upper[1], "tpot_ms", "time per token")):
        for ink, share in zip(_INK, ("p50", "p90", "p99"), strict=True):
            axes.plot(rates, [point[name][share] for point in points], "o-", color=ink, label=share)
        axes.set(ylabel=f"{label}, ms", yscale="log" if all(point[name]["p50"] > 0 for point in points) else "linear")
        axes.legend()
    lower[0].plot(rates, [point["output_tokens_per_s"] for point in points], "o-", color=_INK[0])
    lower[0].set(ylabel="output tokens a second", ylim=(0, None))
    lower[1].plot(rates, [point["goodput"]["requests_per_s"] for point in points], "o-", color=_INK[0], label="in time")
    lower[1].plot(rates, [point["requests_per_s"] for point in points], ".--", color=_INK[1], label="all")
    lower[1].set(ylabel="requests a second", ylim=(0, None))
    lower[1].legend()
    for axes in (*upper, *lower):
        axes.set(xlabel="requests sent a second", xscale="log")
        axes.grid(alpha=0.3)
        if found["knee"] is not None:
            axes.axvline(found["knee"], color="black", linestyle=":", linewidth=1)
    return _save(path, figure, title, points)


def _figure_class() -> Any:
    try:
        return import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'distaff[plots]'") from error


def _shares(axes: Axes, label: str, seconds: Sequence[float], ink: int) -> None:
    """How many requests or gaps stay below each time."""
    values = np.sort(np.asarray(seconds)) * 1e3
    if len(values):
        axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=_INK[ink])
        if values[0] > 0:
            axes.set(xscale="log")
    axes.set(xlabel=label, ylabel="share below", ylim=(0, 1))
    axes.grid(alpha=0.3)


def _over_time(running: Axes, tokens: Axes, records: Sequence[Record]) -> None:
    start = min((record.sent for record in records), default=0.0)
    edges = np.linspace(0, max(duration_of(records), 1e-9), _BINS + 1)
    begins, ends = (np.sort([getattr(record, name) - start for record in records]) for name in ("sent", "ended"))
    running.plot(edges, np.searchsorted(begins, edges, "right") - np.searchsorted(ends, edges, "right"), color=_INK[0])
    running.set(xlabel="seconds", ylabel="requests on their way", ylim=(0, None))
    arrivals = [(moment - start, count) for record in records for moment, count in record.arrivals]
    moments, counts = np.array(arrivals).T if arrivals else (np.zeros(0), np.zeros(0))
    rate = np.histogram(moments, edges, weights=counts)[0] / (edges[1] - edges[0])
    tokens.stairs(rate, edges, color=_INK[1])
    tokens.set(xlabel="seconds", ylabel="output tokens a second", ylim=(0, None))
    for axes in (running, tokens):
        axes.grid(alpha=0.3)


def _save(path: Path, figure: Any, title: str, reports: Sequence[Report]) -> list[Path]:
    """Writes PATH.png and PATH.html; a suffix that `path` has is replaced."""
    figure.suptitle(title)
    picture, page = path.with_suffix(".png"), path.with_suffix(".html")
    svg = io.StringIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=120)
        figure.savefig(svg, format="svg")
        body = svg.getvalue()
        text = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{_STYLE}</style>{body[body.index('<svg') :]}{_table(reports)}</html>\n"
        )
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--plot {path}: cannot be written ({error.strerror})") from error
    return [picture, page]


def _table(reports: Sequence[Report]) -> str:
    columns = ("rate", "requests", "failed", "requests_per_s", "output_tokens_per_s")
    times = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")
    shown = [name for name in columns if any(name in report for report in reports)]
    head = "".join(f"<th>{name}" for name in (*shown, *(f"{name} p50 / p90 / p99" for name in times)))
    rows = ""
    for report in reports:
        cells = [f"{report[name]:g}" if name in report else "" for name in shown]
        cells += [" / ".join(f"{report[name][share]:.1f}" for share in ("p50", "p90", "p99")) for name in times]
        rows += "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells)
    return f"<table><tr>{head}{rows}</table>"
