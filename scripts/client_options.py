"""Options of commands that ask a server, and how tokens are read."""

from pathlib import Path
from typing import Annotated

import typer

from ..backends.errors import UsageError

SERVER = "The server"
"""Title of the options that say how a server is reached."""

Target = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="Where it is; grpcs://HOST:PORT asks for TLS.",
        metavar="HOST:PORT",
        rich_help_panel=SERVER,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="A file with the bearer token to show.", metavar="FILE", rich_help_panel=SERVER),
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="Certificates to trust (PEM) instead of the system's; asks for TLS.",
        metavar="FILE",
        rich_help_panel=SERVER,
    ),
]


def read_token(path: Path | None) -> str | None:
    """The token in a file, None for no file. Raises UsageError."""
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {path}: cannot be read ({error}); expected a file with a token") from error
    if not token:
        raise UsageError(f"--token-file {path}: is empty; expected a token")
    return token
