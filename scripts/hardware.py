"""`distaff hardware`: what chips can do, and where each figure comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Debug, Json
from .output import print_json
from .reporting import reporting

if TYPE_CHECKING:
    from ..backends.hardware import Chip

ChipsFile = Annotated[
    Path | None,
    typer.Option("--chips", metavar="FILE", help="YAML with more chips, or other figures of these."),
]
Figures = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="CHIP.FIGURE=N", help="Another figure, such as v5p.watts=500. Repeat it for more."),
]
Prices = Annotated[
    list[str] | None,
    typer.Option("--price", metavar="CHIP=DOLLARS", help="Of one chip for an hour, such as v6e=1.35. Repeat it."),
]

_NOT_KNOWN = "n/a"


def hardware(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CHIP...", help="Such as v6e h100. [default: all]")
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also list the page and the month of each figure.")
    ] = False,
    chips_file: ChipsFile = None,
    figures: Figures = None,
    price: Prices = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show chips: peaks, memory, links, power and price, and what follows from them for inference.

    Figures are of a whole chip, dense, as their makers publish them. What nobody published is n/a.

    \b
    Columns:
      BF16, 8-BIT       TFLOP/s; the faster of int8 and fp8
      HBM, TB/S         GB of memory, and its bandwidth
      ON-CHIP           MB beside the arithmetic: vector memory of TPUs, last-level caches of GPUs
      LINKS             GB/s in one direction, all links of the chip together
      FABRIC            what they form: a torus of so many axes; a switch, or links of each pair, of so many chips
      FLOP/B            FLOPs for each byte that memory delivers
      B BF16, B 8-BIT   tokens in a decode step from which on arithmetic takes longer than weights: weights
                        and arithmetic in bf16; both in 8 bits. Below it, more rows cost nothing
      TF/W, GB/S/W      bf16 TFLOP/s and bandwidth for each watt
      TF/$, GB/S/$      the same for each dollar an hour

    \b
    Examples:
      distaff hardware
      distaff hardware v5e v6e h100 --price v6e=1.35 --sources
      distaff hardware --set v5p.watts=500 --json
    """
    with reporting(debug):
        from ..backends.hardware import chip

        table = chip_table(chips_file, figures, price)
        chosen = [chip(name, table) for name in names or table]
        if json:
            print_json({"chips": [_object(each) for each in chosen]})
            return
        rows = [_HEAD, *(_row(each) for each in chosen)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            typer.echo("  ".join((row[0].ljust(widths[0]), *cells)))
        if sources:
            for each in chosen:
                typer.echo(f"\n{each.name}")
                for figure, source in each.sources.items():
                    typer.echo(f"  {figure:24} {source.page}{f' ({source.read})' if source.read else ''}")


def chip_table(path: Path | None, figures: list[str] | None, prices: list[str] | None) -> "Mapping[str, Chip]":
    """The table with what a file, --set and --price change, in this order."""
    from ..backends.hardware import chips, read_chips, with_figures

    table = chips() if path is None else read_chips(path)
    table = with_figures(table, figures or ())
    return with_figures(table, prices or (), figure="dollars_per_hour")


def ratios(chip: "Chip") -> dict[str, float | None]:
    """What follows from a chip's figures; None where one of them is not known."""
    bf16, narrow = chip.flops.get("bfloat16"), _eight_bit(chip)
    bandwidth, watts, dollars = chip.hbm_bytes_per_second, chip.watts, chip.dollars_per_hour
    return {
        "flops_per_byte": _ratio(bf16, bandwidth),
        # A decode step reads each weight once, and computes 2 FLOPs with it for each token.
        "compute_bound_batch_bf16": _ratio(bf16, bandwidth),
        "compute_bound_batch_8bit_weights": _ratio(bf16, 2 * bandwidth),
        "compute_bound_batch_8bit": _ratio(narrow, 2 * bandwidth),
        "flops_per_watt": _ratio(bf16, watts),
        "bytes_per_second_per_watt": _ratio(bandwidth, watts),
        "flops_per_dollar_hour": _ratio(bf16, dollars),
        "bytes_per_second_per_dollar_hour": _ratio(bandwidth, dollars),
    }


_HEAD = (
    *("CHIP", "BF16", "8-BIT", "HBM", "TB/S", "ON-CHIP", "LINKS", "FABRIC", "W", "$/H"),
    *("FLOP/B", "B BF16", "B 8-BIT", "TF/W", "GB/S/W", "TF/$", "GB/S/$"),
)


def _row(chip: "Chip") -> tuple[str, ...]:
    found = ratios(chip)
    links = _product(chip.links, chip.link_bytes_per_second)
    return (
        chip.name,
        _text(chip.flops.get("bfloat16"), 1e-12),
        _text(_eight_bit(chip), 1e-12),
        _text(chip.hbm_bytes, 1e-9),
        _text(chip.hbm_bytes_per_second, 1e-12, ".4g"),
        _text(chip.on_chip_bytes, 1e-6),
        _text(links, 1e-9),
        _fabric(chip),
        _text(chip.watts, 1),
        _text(chip.dollars_per_hour, 1, ".2f"),
        _text(found["flops_per_byte"], 1),
        _text(found["compute_bound_batch_bf16"], 1),
        _text(found["compute_bound_batch_8bit"], 1),
        _text(found["flops_per_watt"], 1e-12, ".2f"),
        _text(found["bytes_per_second_per_watt"], 1e-9, ".1f"),
        _text(found["flops_per_dollar_hour"], 1e-12),
        _text(found["bytes_per_second_per_dollar_hour"], 1e-9),
    )


def _fabric(chip: "Chip") -> str:
    size = chip.node_chips if chip.torus_axes is None else f"{chip.torus_axes}d"
    return _NOT_KNOWN if chip.fabric is None else f"{chip.fabric}-{size}"


def _object(chip: "Chip") -> dict[str, Any]:
    plain = (
        *("maker", "platform", "devices_per_chip", "hbm_bytes", "hbm_bytes_per_second", "on_chip_bytes", "fabric"),
        *("torus_axes", "node_chips", "links", "link_bytes_per_second", "dcn_bytes_per_second", "watts"),
        "dollars_per_hour",
    )
    return {
        "name": chip.name,
        "flops": dict(chip.flops),
        **{name: getattr(chip, name) for name in plain},
        "ratios": ratios(chip),
        "sources": {figure: {"page": each.page, "read": each.read} for figure, each in chip.sources.items()},
    }


def _eight_bit(chip: "Chip") -> float | None:
    return max((flops for dtype, flops in chip.flops.items() if dtype.startswith(("int8", "float8"))), default=None)


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under


def _product(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first * second


def _text(value: float | None, scale: float, form: str = ".0f") -> str:
    return _NOT_KNOWN if value is None else format(value * scale, form)
