"""The rows of `distaff bench kernels` for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_WIDTH = 190
"""Characters of a table's line at most: broken cells would be harder to read than broken lines."""


def print_rows(rows: Sequence[Row], compiler: str) -> None:
    """One table for each generation, peers beside ours."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, width=_WIDTH)
    for generation in dict.fromkeys(row["generation"] for row in rows):
        table = Table(title=f"{generation}: static, {compiler}", title_justify="left")
        table.add_column("kernel")
        table.add_column("shape")
        shown = [row for row in rows if row["generation"] == generation]
        columns = {name: cell for name, cell in _COLUMNS.items() if any(cell(row) for row in shown)}
        for name in columns:
            table.add_column(name, justify="right")
        for row in shown:
            table.add_row(row["kernel"], row["shape"], *(cell(row) for cell in columns.values()))
        console.print(table)
    for row in rows:
        if row["error"]:
            console.print(f"{row['kernel']} {row['generation']} {row['shape']}: {row['error']}", markup=False)
    asked = [row for row in rows if row["met"] is not None]
    console.print(f"{sum(row['met'] for row in asked)} of {len(asked)} rows with a bar keep it.")


def _figure(name: str, form: Callable[[float], str]) -> Callable[[Row], str]:
    """A figure's cell; one that misses its bar shows the bar."""

    def cell(row: Row) -> str:
        value = row["figures"].get(name)
        if value is None:
            return ""
        return form(value) + (f" > {form(row['bar'][name])}" if name in row["missed"] else "")

    return cell


def _bar(row: Row) -> str:
    return {True: "met", False: "missed", None: ""}[row["met"]]


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _share(value: float) -> str:
    return f"{value:.0%}"


_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "compute µs": _figure("compute_us", _number),
    "HBM µs": _figure("hbm_us", _number),
    "ratio": _figure("ratio", _ratio),
    "to ideal MXU": _figure("mxu_ratio", _ratio),
    "step to HBM": _figure("step_ratio", _ratio),
    "MXU busy": _figure("mxu_busy", _share),
    "bundles": _figure("bundles", _number),
    "spills in hot loop": _figure("hot_loop_spills", _share),
    "VMEM MB": _figure("vmem_bytes", lambda value: f"{value / 1e6:.1f}"),
    "compile s": _figure("compile_s", lambda value: f"{value:.1f}"),
    "cache copies": _figure("cache_copies", _number),
    "measured µs": _figure("measured_us", _number),
    "bar": _bar,
}
