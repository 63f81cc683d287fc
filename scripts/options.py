"""Options that mean the same in every command."""

import re
from enum import StrEnum
from typing import Annotated

import typer

from ..backends.errors import InvalidParameterError

ENGINE = "How it runs"
"""Title of the options that say how a model is run."""

_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY_UNITS = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


class Dtype(StrEnum):
    """Types that weights can be held in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


Offline = Annotated[
    bool, typer.Option("--offline", help="Never touch the network: use what is on disk or cached, or fail.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, on one line, the last on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="With an error, show its stack trace too.")]

KVDtype = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype",
        help="What the cache is held in: float32, bfloat16, int8 or fp8. [default: as --dtype]",
        metavar="TYPE",
        rich_help_panel=ENGINE,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        help="Round weights: int8 (activations too), int8-weight, int4 (groups of 64; int4:32), fp8, fp8-weight. "
        "stored: small numbers of the file stay, none: they are expanded. [default: in GGUF none, else stored]",
        metavar="SCHEME",
        rich_help_panel=ENGINE,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="What computes: auto, tpu, gpu, cpu, reference, torch:cpu, torch:xla or torch:hpu.",
        metavar="NAME",
        rich_help_panel=ENGINE,
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Several devices, such as tensor=4, or auto ('distaff layout presets').",
        metavar="LAYOUT",
        rich_help_panel=ENGINE,
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        help="With --layout: make N virtual devices on the CPU.",
        metavar="N",
        min=1,
        rich_help_panel=ENGINE,
    ),
]
HOSTS = "Several hosts"
"""Title of the options that say which hosts work together."""

Hosts = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        help="auto: read which hosts there are from Cloud TPU or Kubernetes.",
        metavar="auto",
        rich_help_panel=HOSTS,
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        "--coordinator", help="Where host 0 listens for the others.", metavar="HOST:PORT", rich_help_panel=HOSTS
    ),
]
NumHosts = Annotated[
    int | None, typer.Option("--num-hosts", help="How many there are.", metavar="N", rich_help_panel=HOSTS)
]
Host = Annotated[
    int | None,
    typer.Option("--host", help="Which one this is, from 0, which prints.", metavar="I", rich_help_panel=HOSTS),
]
HostTimeout = Annotated[
    float | None,
    typer.Option(
        "--host-timeout",
        help="Seconds for all to come, and to notice that one is gone. [default: 60]",
        metavar="S",
        rich_help_panel=HOSTS,
    ),
]
MaxBatch = Annotated[
    int | None,
    typer.Option(
        "--max-batch",
        help="Most texts computed at once; more wait. [default: 32]",
        metavar="N",
        rich_help_panel=ENGINE,
    ),
]
KVMemory = Annotated[
    str | None,
    typer.Option(
        "--kv-memory",
        help="Memory of the KV cache, such as 512MB or 2GiB. [default: a share of what is free]",
        metavar="SIZE",
        rich_help_panel=ENGINE,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Longest text in tokens, prompt included. [default: the model's]",
        metavar="N",
        rich_help_panel=ENGINE,
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="The same tokens whatever else is computed at the same time, in bfloat16 too; slower.",
        rich_help_panel=ENGINE,
    ),
]


def parse_size(field: str, text: str) -> int:
    """Bytes of a size such as "512MB" (millions) or "2GiB" (powers of 1024). Raises InvalidParameterError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMGT]i)|([kKMGT]?))B?", text.strip())
    size = 0
    if match is not None:
        number, binary, decimal = match.groups()
        unit = _BINARY_UNITS[binary] if binary else _UNITS["k" if decimal == "K" else decimal]
        size = int(float(number) * unit)
    if size < 1:
        raise InvalidParameterError(field, text, "a size such as 512MB or 2GiB")
    return size
