"""What became of a job, for people."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..serving.batch_jobs.scan import Scan


def print_scan(found: "Scan") -> None:
    """The problems of an input, on stderr."""
    if not found.bad:
        return
    counts = ", ".join(f"{count} {code}" for code, count in found.problems.most_common())
    sys.stderr.write(f"{found.bad} of {found.lines} lines cannot be answered: {counts}\n")
    for where, code, message in found.shown:
        sys.stderr.write(f"  {where}: {code}: {message}\n")
    if found.bad > len(found.shown):
        sys.stderr.write(f"  and {found.bad - len(found.shown)} more\n")
    sys.stderr.flush()


def scan_report(found: "Scan") -> dict[str, Any]:
    """The same as JSON."""
    problems = [{"where": where, "code": code, "message": message} for where, code, message in found.shown]
    return {
        "lines": found.lines, "good": found.lines - found.bad, "bad": found.bad, "errors": dict(found.problems),
        "problems": problems, "input": found.digest,
    }  # fmt: skip


def print_summary(told: Mapping[str, Any]) -> None:
    """The table at the end, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("lines", f"{told['total']}")
    table.add_row("answered", f"{told['completed']}")
    for code, count in told["errors"].items():
        table.add_row(f"failed: {code}", f"{count}")
    table.add_row("tokens in / out", f"{told['prompt_tokens']} / {told['completion_tokens']}")
    table.add_row("runs, seconds", f"{told['runs']}, {told['seconds']:.1f}")
    for name, key, form in _RATES:
        if told[key] is not None:
            table.add_row(name, form.format(told[key]))
    if told["dollars"] is not None:
        table.caption = f"${told['dollars_per_chip_hour']:g} a chip-hour: {told['price_source']}"
        table.caption_justify = "left"
    Console(soft_wrap=True).print(table)


_RATES = (
    ("tokens/s", "tokens_per_s", "{:.1f}"),
    ("of them output", "completion_tokens_per_s", "{:.1f}"),
    ("tokens/s per chip", "tokens_per_s_per_chip", "{:.1f}"),
    ("batch occupancy", "batch_occupancy", "{:.0%}"),
    ("prefix hits", "prefix_hit_rate", "{:.0%}"),
    ("MFU", "mfu", "{:.1%}"),
    ("MBU", "mbu", "{:.1%}"),
    ("chip-hours", "chip_hours", "{:.4f}"),
    ("dollars", "dollars", "{:.4f}"),
    ("dollars per million tokens", "dollars_per_million_tokens", "{:.4f}"),
)
