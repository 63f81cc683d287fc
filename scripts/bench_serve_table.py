"""What `distaff bench serve` measured, for people."""

from collections.abc import Callable, Mapping
from typing import Any


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


def _percentiles(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda report: " / ".join(f"{report[name][share]:.1f}" for share in ("p50", "p90", "p99"))


def _goodput(report: Mapping[str, Any]) -> str:
    if "goodput" not in report:
        return ""
    return f"{report['goodput']['requests_per_s']:.2f} requests/s ({report['goodput']['share']:.0%})"


_ROWS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "requests": lambda report: str(report["requests"]),
    "failed": lambda report: ", ".join(f"{count} {name}" for name, count in report["errors"].items()),
    "duration": lambda report: f"{report['duration_s']:.2f} s",
    "requests/s": lambda report: f"{report['requests_per_s']:.2f}",
    "output tokens/s": lambda report: f"{report['output_tokens_per_s']:.1f}",
    "all tokens/s": lambda report: f"{report['total_tokens_per_s']:.1f}",
    "at once (mean, most)": lambda report: f"{report['concurrency']['mean']:.1f}, {report['concurrency']['max']}",
    "goodput": _goodput,
    "TTFT p50 / p90 / p99, ms": _percentiles("ttft_ms"),
    "TPOT p50 / p90 / p99, ms": _percentiles("tpot_ms"),
    "ITL p50 / p90 / p99, ms": _percentiles("itl_ms"),
    "e2el p50 / p90 / p99, ms": _percentiles("e2el_ms"),
    "sent late p50 / p90 / p99, ms": _percentiles("late_ms"),
    "prompt tokens cached": lambda report: f"{report['cached_tokens'] / max(1, report['prompt_tokens']):.0%}",
}
