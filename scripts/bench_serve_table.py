"""What `distaff bench serve` measured, for people."""

from collections.abc import Callable, Mapping
from typing import Any

from .bench_tables import goodput, percentiles


def print_report(report: Mapping[str, Any]) -> None:
    """A table for people: one column for each rate."""
    from rich.console import Console
    from rich.table import Table

    points = report.get("points", [report])
    table = Table(
        title=f"{report['model']} at {report['target']}", title_justify="left", show_header="points" in report
    )
    table.add_column("requests a second")
    for point in points:
        table.add_column(f"{point['rate']:g}" if "rate" in point else "", justify="right")
    for name, shown in _ROWS.items():
        cells = [shown(point) for point in points]
        if any(cells):
            table.add_row(name, *cells)
    if "points" in report:
        limits = ", ".join(f"{name[:-3]} {value:g} ms" for name, value in report["limits"].items() if value is not None)
        knee = "none" if report["knee"] is None else f"{report['knee']:g} requests/s"
        beyond = "; the highest rate that was tried" if report["reached_most"] else ""
        table.caption = f"knee: {knee} ({report['share']:.0%} of the requests within {limits}{beyond})"
        table.caption_justify = "left"
    Console(soft_wrap=True).print(table)


def _generator(report: Mapping[str, Any]) -> str:
    own = report["generator"]
    late = own["loop_late_ms"]
    share = f"{own['cpu_share']:.0%} of a core, {own['cpu_us_per_message']:.0f} us a message"
    return f"{share}, late by {late['p50']:.1f} / {late['p99']:.1f} ms"


_ROWS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "requests": lambda report: str(report["requests"]),
    "failed": lambda report: ", ".join(f"{count} {name}" for name, count in report["errors"].items()),
    "duration": lambda report: f"{report['duration_s']:.2f} s",
    "requests/s": lambda report: f"{report['requests_per_s']:.2f}",
    "output tokens/s": lambda report: f"{report['output_tokens_per_s']:.1f}",
    "all tokens/s": lambda report: f"{report['total_tokens_per_s']:.1f}",
    "at once (mean, most)": lambda report: f"{report['concurrency']['mean']:.1f}, {report['concurrency']['max']}",
    "goodput": goodput,
    "TTFT p50 / p90 / p99, ms": percentiles("ttft_ms"),
    "TPOT p50 / p90 / p99, ms": percentiles("tpot_ms"),
    "ITL p50 / p90 / p99, ms": percentiles("itl_ms"),
    "e2el p50 / p90 / p99, ms": percentiles("e2el_ms"),
    "sent late p50 / p90 / p99, ms": percentiles("late_ms"),
    "the generator itself": _generator,
    "prompt tokens cached": lambda report: f"{report['cached_tokens'] / max(1, report['prompt_tokens']):.0%}",
}
