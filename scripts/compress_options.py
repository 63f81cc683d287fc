"""Options that every way of making a smaller checkpoint has."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .evaluate import read_text

if TYPE_CHECKING:
    from ..serving.evaluate import Measurement

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="What --model takes: a name, a folder, a .gguf file, a hub id.")
]
Destination = Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")]
Calibration = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="Text to choose by, UTF-8. [default: a sample]")
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option("--calibration-tokens", metavar="N", min=256, help="Read no more of it than these. [default: 4096]"),
]
Text = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="Text to measure with, UTF-8. [default: a sample]")
]
Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", min=64, help="Measure with no more than these.")]
Window = Annotated[
    int, typer.Option("--window", metavar="N", min=16, help="Tokens that are read at once, from nothing.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")]


def measurement(
    *,
    text: Path | None,
    tokens: int | None,
    window: int,
    backend: str,
    max_kl: float | None,
    max_ppl_increase: float | None,
) -> "Measurement":
    """How what comes out is measured, and what it is held against.

    Raises:
        UsageError, InvalidParameterError: of read_text.
    """
    from ..serving.evaluate import Measurement

    return Measurement(
        text=read_text("--text", text),
        max_tokens=tokens,
        window=window,
        backend=backend,
        max_kl=max_kl,
        max_ppl_increase=max_ppl_increase,
    )
