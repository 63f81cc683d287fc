"""`distaff route`: one address for several servers."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..backends.errors import UsageError
from .client_options import SERVER, TokenFile, read_token
from .options import Debug
from .reporting import reporting

LISTEN = "Where it listens"


def route(
    targets: Annotated[
        list[str], typer.Argument(help="The servers: HOST:PORT or grpcs://HOST:PORT.", metavar="TARGET...")
    ],
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on.", rich_help_panel=LISTEN)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535, rich_help_panel=LISTEN)
    ] = 50050,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert", help="Listen with TLS: the certificate (PEM).", metavar="FILE", rich_help_panel=LISTEN
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", help="Its key (PEM).", metavar="FILE", rich_help_panel=LISTEN)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-client-ca",
            help="Clients need a certificate that these signed (PEM).",
            metavar="FILE",
            rich_help_panel=LISTEN,
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            help="Certificates to trust in servers (PEM) instead of the system's; asks for TLS.",
            metavar="FILE",
            rich_help_panel=SERVER,
        ),
    ] = None,
    token_file: TokenFile = None,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds that running calls get at the end.", metavar="X", min=0)
    ] = 30.0,
    debug: Debug = False,
) -> None:
    """Front several servers with one gRPC address.

    Every call goes to the server that will probably begin its answer first: the one with the shortest queue, unless
    another has computed the beginning of the prompt already. A server that is away or draining gets nothing. Until the
    first event has come, a call that fails on one server goes to another. All gRPC protocols pass, clients' tokens and
    deadlines with them; Cancel reaches every server; a batch goes to one server as a whole.

    One line on stdout says when it listens; stderr tells which servers come and go. SIGTERM lets running calls end; a
    second one does not wait.

    \b
    Examples:
      distaff route 127.0.0.1:50051 127.0.0.1:50052
      distaff route --host 0.0.0.0 --port 50050 --token-file router.token llm-0:50051 llm-1:50051
      distaff route --tls-cert server.pem --tls-key server.key grpcs://llm-0:443 grpcs://llm-1:443 --ca ca.pem

    Asking servers for their load is an admin call: without --token-file, or a token that may not, the router
    knows of its own calls alone.
    """
    with reporting(debug):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        from ..serving.client.target import Target
        from ..serving.route.run import run_router
        from ..serving.rpc.settings import RpcSettings
        from ..serving.rpc.tls import TlsFiles

        if len(set(targets)) < len(targets):
            raise UsageError(f"a server is named twice among {', '.join(targets)}")
        if tls_cert is None or tls_key is None:
            if tls_cert or tls_key or tls_client_ca:
                raise UsageError("TLS needs both --tls-cert and --tls-key")
            tls = None
        else:
            tls = TlsFiles(tls_cert, tls_key, tls_client_ca)
        token = read_token(token_file)
        code = run_router(
            [Target(target, token, ca) for target in targets],
            RpcSettings(host=host, port=port),
            tls=tls,
            grace=grace,
            on_ready=lambda taken: _ready(host, taken, len(targets)),
        )
    raise typer.Exit(code)


def _ready(host: str, port: int, count: int) -> None:
    sys.stdout.write(f"distaff route: grpc {host}:{port}, {count} server{'' if count == 1 else 's'}\n")
    sys.stdout.flush()
