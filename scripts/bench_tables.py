"""A benchmark's results for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def print_reports(reports: Sequence[Report]) -> None:
    """One column for each report, which differ in the policy alone."""
    from rich.console import Console
    from rich.table import Table

    first = reports[0]
    work = f"{first['requests']} requests, {first['prompt_tokens']} prompt and {first['output_tokens']} output tokens"
    title = f"{first['model']}, {first['dtype']} on {first['backend']}, {first['sampling']}: {work}"
    table = Table(title=title, title_justify="left", show_header=len(reports) > 1)
    table.add_column("")
    for report in reports:
        table.add_column(report["policy"], justify="right")
    for name, shown in _ROWS.items():
        cells = [shown(report) for report in reports]
        if any(cells):
            table.add_row(name, *cells)
    limits = first["limits"]
    table.caption = (
        f"machine: reads {limits['bytes_per_s'] / 1e9:.1f} GB/s, multiplies {limits['flops_per_s'] / 1e9:.0f} GFLOP/s; "
        f"median of {len(first['rounds'])} rounds"
    )
    table.caption_justify = "left"
    Console(soft_wrap=True).print(table)


def percentiles(name: str) -> Callable[[Report], str]:
    """A row of p50, p90 and p99 of one figure."""
    return lambda report: " / ".join(f"{report[name][share]:.1f}" for share in ("p50", "p90", "p99"))


def _phase(name: str) -> Callable[[Report], str]:
    def shown(report: Report) -> str:
        phase = report[name]
        if not phase["steps"]:
            return ""
        return (
            f"{phase['tokens_per_s']:.1f} tokens/s, MFU {phase['mfu']:.0%}, MBU {phase['mbu']:.0%}, "
            f"bound by {phase['bound']}"
        )

    return shown


def goodput(report: Report) -> str:
    """A row of the requests that kept the limits, where there were any."""
    if "goodput" not in report:
        return ""
    return f"{report['goodput']['requests_per_s']:.2f} requests/s ({report['goodput']['share']:.0%})"


def _experts(report: Report) -> str:
    if "experts" not in report:
        return ""
    load = report["experts"]
    waited = f"; {load['waited']} waited for a further round" if load["waited"] else ""
    return f"the most chosen has {load['uneven']:.1f}x the mean (at worst {load['most_uneven']:.1f}x){waited}"


def _processor(report: Report) -> str:
    tokens = report["output_tokens"]
    each = f", {report['cpu_s'] / tokens * 1e3:.2f} ms for an output token" if tokens else ""
    return f"{report['cpu_s']:.2f} s{each}"


_ROWS: Mapping[str, Callable[[Report], str]] = {
    "output tokens/s": lambda report: f"{report['output_tokens_per_s']:.1f}",
    "all tokens/s": lambda report: f"{report['total_tokens_per_s']:.1f}",
    "requests/s": lambda report: f"{report['requests_per_s']:.2f}",
    "elapsed": lambda report: f"{report['elapsed_s']:.2f} s",
    "processor time": _processor,
    "goodput": goodput,
    "failed": lambda report: str(report["failed"] or ""),
    "TTFT p50 / p90 / p99, ms": percentiles("ttft_ms"),
    "TPOT p50 / p90 / p99, ms": percentiles("tpot_ms"),
    "ITL p50 / p90 / p99, ms": percentiles("itl_ms"),
    "e2el p50 / p90 / p99, ms": percentiles("e2el_ms"),
    "steps with prompts": _phase("prefill"),
    "steps of decode": _phase("decode"),
    "host gap": lambda report: f"{report['host_gap_ms_per_step']:.2f} ms a step",
    "batch occupancy": lambda report: f"{report['batch_occupancy']:.0%}",
    "padding": lambda report: f"{report['padding_waste']:.0%} of tokens computed",
    "prefix hits": lambda report: f"{report['prefix_hit_rate']:.0%} of prompt tokens",
    "preemptions": lambda report: str(report["preemptions"]),
    "compiles": lambda report: f"{report['compiles']} ({report['unexpected_compiles']} unexpected)",
    "experts": _experts,
    "load, warm-up": lambda report: f"{report['load_s']:.1f} s, {report['warm_up_s']:.1f} s",
}
