"""`distaff convert`: from one checkpoint format to another."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import InvalidParameterError
from .options import Debug, Json, Offline
from .output import print_json, size_text
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..models.checkpoints import Split


class Format(StrEnum):
    """What can be written."""

    SAFETENSORS = "safetensors"
    ORBAX = "orbax"
    GGUF = "gguf"


class Stored(StrEnum):
    """Types that weights can be stored in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    Q8_0 = "q8_0"


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="What --model takes: a name, a folder, a .gguf file, a hub id.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; for gguf, the file.")],
    to: Annotated[
        Format,
        typer.Option("--to", help="safetensors for transformers, gguf for llama.cpp, orbax for Distaff."),
    ],
    dtype: Annotated[
        Stored | None,
        typer.Option(
            "--dtype",
            help="What to store; q8_0 in gguf alone. [default: as it is; quantised: float32]",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="LAYOUT",
            help="For orbax: end chunks where the parts of this layout end, such as tensor=4; any layout reads them.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint.

    Reads Hugging Face folders (safetensors), GGUF and Orbax. The configuration and the tokenizer come along.
    DST appears when it is complete, or not at all.

    \b
    Examples:
      distaff convert smollm2-135m-instruct ./smollm2 --to safetensors --dtype bfloat16
      distaff convert ./smollm2 ./smollm2-orbax --to orbax
      distaff convert ./smollm2 ./smollm2-tensor3 --to orbax --layout tensor=3
      distaff convert ./smollm2 ./smollm2.gguf --to gguf --dtype q8_0
    """
    with reporting(debug):
        split = _split(layout)
        from ..models.checkpoints import convert as convert_checkpoint

        with ProgressDisplay(source) as display:
            report = convert_checkpoint(
                source,
                destination,
                to=to.value,
                dtype=dtype.value if dtype else None,
                layout=split,
                overwrite=overwrite,
                offline=offline or None,
                progress=lambda done, total: display(Step("load", done, total)),
            )
        if json:
            described = {"source": source, "destination": str(destination), "format": to.value}
            print_json(described | {"bytes": report.bytes})
        else:
            typer.echo(f"wrote {destination} ({to.value}, {size_text(report.bytes)} of weights)")


def _split(layout: str | None) -> "Split | None":
    """The layout on virtual devices of this machine, which have to be asked for before JAX makes any."""
    if layout is None:
        prepare_devices()
        return None
    from ..sharding.parsing import parse_layout

    replica = parse_layout(layout, num_devices=1).replica
    if replica.num_devices == 1:
        raise InvalidParameterError("--layout", layout, "sizes of which one splits the weights, such as tensor=4")
    prepare_devices(replica.num_devices)
    import jax

    from ..sharding.loading import split_for

    return split_for(replica, jax.devices("cpu")[: replica.num_devices])
