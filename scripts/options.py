"""Options that mean the same in every command."""

from enum import StrEnum
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Types that weights can be held in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


Offline = Annotated[
    bool, typer.Option("--offline", help="Never touch the network: use what is on disk or cached, or fail.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, on one line, the last on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="With an error, show its stack trace too.")]
