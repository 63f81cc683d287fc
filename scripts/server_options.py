"""Options of commands that listen, and how their TLS files are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..backends.errors import UsageError

if TYPE_CHECKING:
    from ..serving.tls_files import TlsFiles

LISTEN = "Where it listens"
WHO = "Who may call"
LIFE = "Its life"

ListenHost = Annotated[
    str, typer.Option("--host", help="The address to listen on; 0.0.0.0 is all of them.", rich_help_panel=LISTEN)
]
ListenPort = Annotated[
    int, typer.Option("--port", help="For gRPC; 0 takes a free one.", min=0, max=65535, rich_help_panel=LISTEN)
]
TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="gRPC with TLS: the certificate (PEM).", metavar="FILE", rich_help_panel=WHO),
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).", metavar="FILE", rich_help_panel=WHO)]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        help="Clients need a certificate that these signed (PEM).",
        metavar="FILE",
        rich_help_panel=WHO,
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        "--grace", help="Seconds that running requests get at the end.", metavar="X", min=0, rich_help_panel=LIFE
    ),
]


def tls_files(certificate: Path | None, key: Path | None, client_ca: Path | None) -> "TlsFiles | None":
    """None without TLS.

    Raises:
        UsageError: some are given without those that they need.
    """
    from ..serving.tls_files import TlsFiles

    if certificate is not None and key is not None:
        return TlsFiles(certificate, key, client_ca)
    if certificate is not None or key is not None:
        raise UsageError("--tls-cert and --tls-key belong together: give both")
    if client_ca is not None:
        raise UsageError("--tls-client-ca needs --tls-cert and --tls-key")
    return None
