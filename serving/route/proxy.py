"""Hands calls through, whatever their method: bytes in, bytes out.

1. The first message is read; where it holds a prompt that the router knows to read, its beginning counts.
2. The policy ranks the servers; the best one gets the call, with the client's metadata and the rest of its time.
3. Until the first answer has come, another server may take over. After it a failure is the client's.
4. Answers, metadata and the status go back as they came.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs

from .policy import ranked
from .prefix_map import BYTES_PER_TOKEN, PrefixMap
from .prompts import Prompt
from .refusal import is_lost, is_worth_another, refuse
from .replay import Replay
from .upstream import Upstream

_DROPPED = ("user-agent", "te", "content-type", "host")

Reader = Callable[[bytes], Prompt]

type Context = Any
"""A grpc.aio.ServicerContext; the real one is no subclass of it."""


class Proxy(grpc.GenericRpcHandler):
    """Takes every method that nobody before it took.

    Args:
        upstreams: the servers.
        readers: how to find the prompt in a request, for each method that has one.
        everywhere: methods whose calls go to all servers; each joins their answers into one.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        readers: Mapping[str, Reader],
        everywhere: Mapping[str, Callable[[Sequence[bytes]], bytes]],
        prefixes: PrefixMap,
    ) -> None:
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        self._readers, self._everywhere = readers, everywhere
        self._prefixes = prefixes
        self._turn = 0
        self.draining = False
        self.failovers = 0
        """Calls that another server took over."""
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self, timeout: float) -> None:
        """Returns when no call runs, or `timeout` seconds are over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        """Called by gRPC for each call."""
        method = handler_call_details.method

        async def handle(requests: AsyncIterator[bytes], context: Context) -> None:
            if self.draining:
                await refuse(context, "the router is shutting down")
            replay = Replay(requests)
            self._running += 1
            self._idle.clear()
            try:
                if method in self._everywhere:
                    await self._ask_all(method, replay, context)
                else:
                    await self._forward(method, replay, context)
            finally:
                replay.close()
                self._running -= 1
                if not self._running:
                    self._idle.set()

        return grpc.stream_stream_rpc_method_handler(handle)  # on the wire all four kinds of method are one

    async def _forward(self, method: str, replay: Replay, context: Context) -> None:
        first = await replay.message(0)
        prompt = self._readers.get(method, _no_prompt)(first or b"")
        failure: grpc.aio.AioRpcError | None = None
        tried: set[str] = set()
        while (upstream := self._choose(prompt, tried)) is not None:
            if tried:
                self.failovers += 1
            tried.add(upstream.name)
            failure = await self._attempt(upstream, method, prompt, replay, context)
            if failure is None:
                return
            if is_lost(failure):
                upstream.lost()
            if not replay.whole:
                break
        if failure is None or is_lost(failure):
            await refuse(context, f"none of the {len(self._upstreams)} servers behind this router serves now")
        else:
            await _end(context, failure)

    def _choose(self, prompt: Prompt, tried: set[str]) -> Upstream | None:
        standings = [upstream.standing for upstream in self._upstreams.values() if upstream.name not in tried]
        known = self._prefixes.matches(prompt.beginning, prompt.salt) if prompt.beginning else {}
        best = ranked(standings, len(prompt.beginning) // BYTES_PER_TOKEN, known)
        return self._upstreams[best[0].name] if best else None

    async def _attempt(
        self, upstream: Upstream, method: str, prompt: Prompt, replay: Replay, context: Context
    ) -> grpc.aio.AioRpcError | None:
        """Lets one server answer. Returns its failure if another one may still try; ends the call otherwise."""
        standing = upstream.standing
        tokens = len(prompt.beginning) // BYTES_PER_TOKEN
        known = self._prefixes.matches(prompt.beginning, prompt.salt).get(upstream.name, 0) if tokens else 0
        pending = max(0, tokens - known)
        if tokens:
            self._prefixes.remember(upstream.name, prompt.beginning, prompt.salt)
        self._turn += 1
        upstream.requests += 1
        standing.turn = self._turn
        standing.in_flight += 1
        standing.pending_tokens += pending
        call: Any = upstream.channel.stream_stream(method)(
            timeout=context.time_remaining(), metadata=_metadata(context.invocation_metadata())
        )
        sending = asyncio.create_task(_send(call, replay))
        begun = False
        try:
            while (answer := await call.read()) is not EOF:
                if not begun:
                    begun = True
                    replay.keep_no_longer()
                    standing.pending_tokens -= pending
                    pending = 0
                    await context.send_initial_metadata(await call.initial_metadata())
                await context.write(answer)
            context.set_trailing_metadata(await call.trailing_metadata())
            return None
        except grpc.aio.AioRpcError as error:
            if not begun and is_worth_another(error):
                return error
            if is_lost(error):
                upstream.lost()
            await _end(context, error)
            return None
        finally:
            sending.cancel()
            call.cancel()
            standing.in_flight -= 1
            standing.pending_tokens -= pending

    async def _ask_all(self, method: str, replay: Replay, context: Context) -> None:
        """One message to every server that can be reached, one answer made of theirs."""
        message = await replay.message(0) or b""
        calls = [
            upstream.channel.unary_unary(method)(
                message, timeout=context.time_remaining(), metadata=_metadata(context.invocation_metadata())
            )
            for upstream in self._upstreams.values()
            if upstream.standing.ready
        ]
        answers: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        given = [answer for answer in answers if isinstance(answer, bytes)]
        if given:
            await context.write(self._everywhere[method](given))
            return
        for answer in answers:
            if isinstance(answer, grpc.aio.AioRpcError) and not is_lost(answer):
                await _end(context, answer)
        await refuse(context, f"none of the {len(self._upstreams)} servers behind this router serves now")


def _no_prompt(_: bytes) -> Prompt:
    return Prompt()


async def _send(call: Any, replay: Replay) -> None:
    number = 0
    try:
        while (message := await replay.message(number)) is not None:
            await call.write(message)
            number += 1
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the reading side has the status


async def _end(context: Context, error: grpc.aio.AioRpcError) -> None:
    """The client gets the server's status, its details and trailing metadata."""
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))


def _metadata(given: Iterable[tuple[str, str | bytes]] | None) -> tuple[tuple[str, str | bytes], ...]:
    """Of what the client sent, all that does not belong to its connection."""
    return tuple(
        (name, value) for name, value in given or () if name not in _DROPPED and not name.startswith(("grpc-", ":"))
    )
