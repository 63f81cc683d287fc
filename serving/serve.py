"""A server's life: it listens, gets ready, serves, drains, and ends with an exit code."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..backends.errors import DistaffError
from ..models.checkpoints import fingerprint
from .batch_jobs.manager import JobManager
from .front import Front, ModelCard, State
from .garbage import settle_memory
from .http.app import build_app
from .http.batches import Batches
from .http.server import HttpServer
from .llm import LLM
from .rpc.batch_jobs import SERVICE as BATCH_JOBS
from .rpc.batch_jobs import BatchJobsService
from .rpc.server import RpcServer
from .rpc.settings import RpcSettings
from .rpc.tokens import TokenFile
from .telemetry.logs import RequestLog, configure_logs, remove_logs
from .telemetry.tracing import tracing_from_environment
from .tls_files import TlsFiles

FAILED = 1
_KILLED = 128
"""Exit codes of a process that a signal ended are so much above its number."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeSettings:
    """
    Attributes:
        rpc: where gRPC listens, and the limits of its transport.
        http_host, http_port: of the side port; None: there is none.
        tls: for gRPC; with `http_tls` for HTTP too.
        tokens: the file of bearer tokens; None lets everybody in.
        open_admin: whether the Admin service is for everybody, where nobody needs a token.
        grace: seconds that running requests get when the server goes down.
        notice: seconds between saying so (health) and refusing requests, for balancers to look elsewhere.
        profile_dir: where traces are left.
        batch_dir: where files and batch jobs are kept; None: there are none.
        log_level, log_prompts: of the log on standard error; prompts are in it only if asked for.
    """

    rpc: RpcSettings = field(default_factory=RpcSettings)
    http_host: str = "127.0.0.1"
    http_port: int | None = 8000
    tls: TlsFiles | None = None
    http_tls: bool = False
    tokens: Path | None = None
    open_admin: bool = False
    grace: float = 30.0
    notice: float = 0.0
    profile_dir: Path | None = None
    batch_dir: Path | None = None
    log_level: str = "info"
    log_prompts: bool = False


@dataclass(frozen=True)
class Ports:
    """Where a server listens; None where it does not."""

    grpc: int
    http: int | None


class Server:
    """A front with its ports, from the first to the last moment.

    Args:
        front: not started yet.
        settings: all about it.
    """

    def __init__(self, front: Front, settings: ServeSettings) -> None:
        self.front = front
        self._settings = settings
        self._leaving = asyncio.Event()
        self._grace = settings.grace
        tokens = None if settings.tokens is None else TokenFile(settings.tokens, on_limits=front.limit_tenants)
        self._rpc = RpcServer(
            front,
            settings.rpc,
            tls=settings.tls,
            authenticate=None if tokens is None else tokens.authenticate,
            open_admin=settings.open_admin,
            drain=self.leave,
            profile_dir=settings.profile_dir,
        )
        self._jobs = None if settings.batch_dir is None else _jobs_of(front, settings.batch_dir)
        if self._jobs is not None:
            self._rpc.add(BatchJobsService(self._jobs), BATCH_JOBS)
        self._http: HttpServer | None = None
        if settings.http_port is not None:
            routes = () if self._jobs is None else Batches(self._jobs).routes()
            app = build_app(front, authenticate=None if tokens is None else tokens.authenticate, routes=routes)
            stall = front.limits.stall_seconds
            self._http = HttpServer(
                app,
                host=settings.http_host,
                port=settings.http_port,
                stall_seconds=stall,
                tls=settings.tls if settings.http_tls else None,
            )
        front.on_state(self._changed)

    async def run(self, on_ready: Callable[[Ports], None]) -> int:
        """Serves until `leave`, or until the engine fails.

        Returns:
            The exit code: 0 after draining, 1 after a failure.

        Raises:
            DistaffError: it cannot listen, or cannot get ready.
        """
        front = self.front
        RequestLog(front, prompts=self._settings.log_prompts)
        tracing = tracing_from_environment()
        if tracing is not None:
            tracing.watch(front)
        try:
            await self._listen()
            starting = asyncio.create_task(front.start())
            leaving = asyncio.create_task(self._leaving.wait())
            await asyncio.wait([starting, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
            else:
                await starting
                if self._jobs is not None:
                    self._jobs.start()
                on_ready(Ports(self._rpc.port, None if self._http is None else self._http.port))
            await leaving
            await self._drain()
            return FAILED if front.state is State.FAILED else 0
        finally:
            if self._http is not None:
                await self._http.stop(1.0)
            await self._rpc.stop()
            failed = front.state is State.FAILED
            await self._leave_jobs()
            await front.close()
            if failed:
                _log.error("the engine has failed: %s", front.failure)
            if tracing is not None:
                tracing.close()

    def leave(self, grace: float | None = None) -> None:
        """Begins the end: requests that run get `grace` seconds (None: those of the settings)."""
        if not self._leaving.is_set():
            self._grace = self._settings.grace if grace is None else grace
            self._leaving.set()

    async def _listen(self) -> None:
        await self._rpc.start()
        if self._http is not None:
            try:
                await self._http.start()
            except OSError as error:
                where = f"{self._settings.http_host}:{self._settings.http_port}"
                raise DistaffError(f"cannot listen on {where} ({error.strerror}): port 0 takes a free one") from error

    async def _drain(self) -> None:
        if self.front.state is State.FAILED:
            return
        self._rpc.health.leave()
        await self._leave_jobs()  # they go on after the next start
        await asyncio.sleep(self._settings.notice)
        load = self.front.load()
        _log.info("draining: %d requests run, %d wait, for %g s at most", load.running, load.waiting, self._grace)
        await self.front.drain(self._grace)

    async def _leave_jobs(self) -> None:
        """Stops batch jobs; they wait for the steps that they have under way."""
        if self._jobs is not None and not self.front.hangs:
            leaving = asyncio.ensure_future(asyncio.to_thread(self._jobs.close))
            _, waits = await asyncio.wait([leaving], timeout=self.front.limits.hang_seconds)
            if waits:
                self.front.give_up()
            else:
                leaving.result()

    def _changed(self, state: State) -> None:
        if state is State.FAILED:
            self.leave(0.0)


def _jobs_of(front: Front, folder: Path) -> JobManager:
    card = front.card
    return JobManager(
        front.engine,
        front.tokenizer,
        folder,
        model=card.name,
        identity={
            "name": card.name,
            "family": card.family,
            "dtype": card.dtype,
            "context": card.context,
            "weights": card.weights,
        },
        max_batch=card.max_batch or front.engine.config.max_batch,
        context=card.context,
        served_names=front.served_names,
    )


def run_server(make_front: Callable[[], Front], settings: ServeSettings, on_ready: Callable[[Ports], None]) -> int:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.

    Returns:
        The exit code: 0 after draining, 1 after a failure of the engine. A second signal exits with 128 and its number.
    """

    def ready(ports: Ports) -> None:
        settle_memory()
        on_ready(ports)

    async def serve() -> int:
        server = Server(make_front(), settings)
        loop = asyncio.get_running_loop()
        asked: list[int] = []

        def on_signal(number: int) -> None:
            if asked:
                sys.stderr.flush()
                os._exit(_KILLED + number)
            asked.append(number)
            server.leave()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        try:
            code = await server.run(ready)
            if server.front.hangs:  # the interpreter would wait for the threads that wait for the device
                sys.stderr.flush()
                os._exit(code)
            return code
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(ValueError):
                    loop.remove_signal_handler(number)

    handler = configure_logs(settings.log_level)
    try:
        return asyncio.run(serve())
    finally:
        remove_logs(handler)


def card_of(llm: LLM, name: str) -> ModelCard:
    """What clients may know of a loaded model."""
    tokenizer, config = llm.tokenizer, llm.config
    return ModelCard(
        name=name,
        family=config.family,
        vocab_size=config.vocab_size,
        context=llm.engine.config.context or config.max_positions,
        dtype=llm.dtype,
        backend=llm.backend.name,
        layout=llm.layout,
        max_batch=llm.engine.max_batch,
        weights="-".join(filter(None, (fingerprint(llm.path), llm.quantize))),
        has_tokenizer=tokenizer is not None,
        has_chat_template=tokenizer is not None and tokenizer.chat_template is not None,
        bos_id=None if tokenizer is None else tokenizer.bos_id,
        eos_ids=llm.eos_ids,
    )
