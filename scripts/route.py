"""`distaff route`: one address for several servers."""

import logging
import sys
from typing import Annotated

import typer

from ..backends.errors import UsageError
from .client_options import Ca, TokenFile, read_token
from .options import Debug
from .reporting import reporting
from .server_options import Grace, ListenHost, ListenPort, TlsCert, TlsClientCa, TlsKey, tls_files


def route(
    targets: Annotated[
        list[str], typer.Argument(help="The servers: HOST:PORT or grpcs://HOST:PORT.", metavar="TARGET...")
    ],
    host: ListenHost = "127.0.0.1",
    port: ListenPort = 50050,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    grace: Grace = 30.0,
    debug: Debug = False,
) -> None:
    """Front several servers with one gRPC address.

    Every call goes to the server that will probably begin its answer first: the one with the shortest queue, unless
    another has computed the beginning of the prompt already. A server that is away or draining gets nothing. Until the
    first event has come, a call that fails on one server goes to another, if nothing can be done twice by that. All
    gRPC protocols pass, clients' tokens and deadlines with them; Cancel reaches every server; the items of a batch are
    spread. Admin and BatchJobs are each server's own, and are refused.

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

        if len(set(targets)) < len(targets):
            raise UsageError(f"a server is named twice among {', '.join(targets)}")
        token = read_token(token_file)
        code = run_router(
            [Target(target, token, ca) for target in targets],
            RpcSettings(host=host, port=port),
            tls=tls_files(tls_cert, tls_key, tls_client_ca),
            grace=grace,
            on_ready=lambda taken: _ready(host, taken, len(targets)),
        )
    raise typer.Exit(code)


def _ready(host: str, port: int, count: int) -> None:
    sys.stdout.write(f"distaff route: grpc {host}:{port}, {count} server{'' if count == 1 else 's'}\n")
    sys.stdout.flush()
