"""Runs a router of the protocols that Distaff's servers speak until it is told to stop."""

import asyncio
from collections.abc import Callable, Sequence

from ..client.target import Target
from ..rpc.settings import RpcSettings
from ..tls_files import TlsFiles
from . import native
from .router import Router, serve


def run_router(
    targets: Sequence[Target],
    settings: RpcSettings,
    *,
    tls: TlsFiles | None,
    grace: float,
    on_ready: Callable[[int], None],
) -> int:
    """Returns the exit code: 0 after draining; a second signal's number and 128.

    Args:
        grace: seconds that running calls get.
        on_ready: told the port once it listens.
    """

    async def whole() -> int:
        return await serve(router_of(targets, settings, tls=tls), grace=grace, on_ready=on_ready)

    return asyncio.run(whole())


def router_of(targets: Sequence[Target], settings: RpcSettings, *, tls: TlsFiles | None = None) -> Router:
    """A router that knows the native protocol. To be called where an event loop runs."""
    return Router(
        targets,
        settings=settings,
        tls=tls,
        protocol=native.PROTOCOL,
        split=(native.BATCH,),
        poll=native.ask_load,
        services=native.SERVICES,
    )
