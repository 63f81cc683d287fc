"""Layouts for people: the mesh as a drawing, tensors and collectives as tables."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import typer

from .output import size_text

if TYPE_CHECKING:
    from ..sharding.layout import Layout

_WIDEST = 16
_MOST_ROWS = 64


def draw_mesh(layout: "Layout") -> list[str]:
    """The numbers of the devices: the last axis of the mesh runs to the right, the others downwards."""
    *down, (last, width) = dict(layout.mesh).items() or [("data", 1)]
    shown = min(width, _WIDEST)
    rows = list(product(*(range(size) for _, size in down)))
    labels = [" ".join(f"{axis}={at}" for (axis, _), at in zip(down, place, strict=True)) for place in rows]
    margin = max(map(len, labels))
    cell = len(str(layout.num_devices)) + 1
    dots = " ..." if shown < width else ""
    lines = [f"{'':{margin}}  {last} 0..{width - 1}"]
    for row, label in enumerate(labels[:_MOST_ROWS]):
        numbers = "".join(f"{row * width + column:{cell}}" for column in range(shown))
        lines.append(f"{label:{margin}} {numbers}{dots}")
    return [*lines, "..."] if len(labels) > _MOST_ROWS else lines


def print_layout(layout: "Layout", report: Mapping[str, Any]) -> None:
    """What `distaff layout show` prints."""
    from ..sharding.parsing import layout_yaml

    typer.echo(f"layout {report['layout']}: {report['devices']} devices\n")
    typer.echo("\n".join(draw_mesh(layout)) + "\n")
    typer.echo(layout_yaml(layout))
    tensors = [
        (tensor["path"], ", ".join(tensor["axes"]), tensor["spec"], tensor["held"], size_text(tensor["bytes"]))
        for tensor in report["tensors"]
    ]
    _print_table(("TENSOR", "AXES", "SHAPE / SPLIT OVER", "HELD IN", "ON EACH DEVICE"), tensors)
    typer.echo(
        f"\neach device holds {_weights(report)}, and {size_text(report['cache_token'])} of KV cache for each token"
    )
    typer.echo(f"loading takes at most {size_text(report['staging'])} of host memory beside that, from local files")
    if len(report["stage_layers"]) > 1:
        typer.echo(f"stages compute {', '.join(map(str, report['stage_layers']))} layers")
    for title, key, idle in (
        ("a decode step", "decode_sends", report["decode_bubble"]),
        ("a prefill step", "prefill_sends", report["prefill_bubble"]),
    ):
        waits = f"; each stage waits for {idle:.0%} of it" if idle else ""
        typer.echo(f"\n{title} sends{waits}")
        sends = [
            (each["what"], each["op"], ", ".join(each["axes"]), str(each["count"]), size_text(each["bytes"]))
            for each in report[key]
        ]
        _print_table(("  WHAT", "HOW", "ALONG", "TIMES", "EACH"), [("  " + what, *rest) for what, *rest in sends])
        total = sum(each["link_bytes"] for each in report[key] if each["when"] in ("", "greedy"))
        typer.echo(f"  in rings, each device sends {size_text(round(total))}, if all rows are greedy")


def print_check(report: Mapping[str, Any]) -> None:
    """What `distaff layout check` prints of a layout that fits."""
    lines = [f"layout {report['layout']} fits: {_weights(report)} on each device"]
    if report["memory"] is not None:
        lines.append(
            f"of {size_text(report['memory'])}, the rest holds at most {report['tokens']} tokens of KV cache "
            f"({size_text(report['cache_token'])} each), less what a step needs"
        )
    for name, step in (report["compiled"] or {}).items():
        verdict = "as predicted" if step["agrees"] else "NOT as predicted"
        lines.append(
            f"{name}: compiled in {step['seconds']:.1f} s, {size_text(step['arguments'])} of arguments, "
            f"{size_text(step['temporaries'])} of temporaries; sends {verdict}"
        )
        for kind in ("predicted", "compiled")[step["agrees"] :]:
            lines += [f"  {kind:9} {line}" for line in _totals(step[kind])]
    typer.echo("\n".join(lines))


_EXTRA = {"kv_copies": "copies of KV heads", "padding": "padding"}


def _weights(report: Mapping[str, Any]) -> str:
    extra = [f"{size_text(report[key])} of {what}" for key, what in _EXTRA.items() if report[key]]
    return f"{size_text(report['weights'])} of weights{f' ({", ".join(extra)})' if extra else ''}"


def _totals(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        along = ", ".join(row["axes"]) or "other devices"
        yield f"{row['op']} along {along} x{row['count']}: {size_text(row['bytes'])} in all"


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if not rows:
        typer.echo("  nothing")
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
