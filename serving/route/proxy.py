"""Hands calls through, whatever their method: bytes in, bytes out.

1. The first message is read; where the router knows to read it, its name and the beginning of its prompt count.
2. A server answers (Dispatcher), with the client's metadata and the rest of its time; a GenerateBatch is answered by
   all of them (Splitter).
3. Answers, metadata and the status go back as they came.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from .dispatch import Dispatcher, Metadata, Passing
from .names import Names, TakenError, caller_of
from .protocol import Protocol
from .refusal import Context, NobodyServesError, end_as, end_with, refuse
from .replay import Replay
from .splitter import Splitter


class Proxy(grpc.GenericRpcHandler):
    """Takes every method that nobody before it took.

    Args:
        dispatcher: brings calls to the servers.
        protocol: what is known of methods.
        splitters: answer the methods whose requests are split among the servers.
    """

    def __init__(self, dispatcher: Dispatcher, protocol: Protocol, splitters: Mapping[str, Splitter]) -> None:
        self._dispatcher, self._protocol, self._splitters = dispatcher, protocol, splitters
        self._names = Names()
        self.draining = False
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
            refusal = self._protocol.refusal(method)
            if refusal is not None:
                await end_with(context, "UNIMPLEMENTED", refusal)
            replay = Replay(requests)
            self._running += 1
            self._idle.clear()
            try:
                await self._answer(method, replay, context)
            except grpc.aio.AioRpcError as error:
                await end_as(context, error)
            except NobodyServesError as error:
                await refuse(context, str(error))
            except TakenError as error:
                await end_with(context, "ALREADY_EXISTS", str(error), field="request_id")
            finally:
                replay.close()
                self._running -= 1
                if not self._running:
                    self._idle.set()

        return grpc.stream_stream_rpc_method_handler(handle)  # on the wire all four kinds of method are one

    async def _answer(self, method: str, replay: Replay, context: Context) -> None:
        first = await replay.message(0) or b""
        metadata: Metadata = tuple(context.invocation_metadata() or ())
        if method in self._protocol.everywhere:
            answers = await self._dispatcher.ask_all(method, first, metadata, context.time_remaining())
            await context.write(self._protocol.everywhere[method](answers))
            return
        splitter = self._splitters.get(method)
        items = None if splitter is None else splitter.items_of(first)
        if splitter is not None and items is not None:
            await splitter.answer(items, metadata, context, self._names)
            return
        asked = self._protocol.read(method, first)
        passing = Passing(
            method,
            asked,
            self._protocol.is_repeatable(method),
            replay,
            metadata,
            left=context.time_remaining,
            on_begin=context.send_initial_metadata,
            write=context.write,
        )
        with self._names.hold(caller_of(metadata), asked.id):
            context.set_trailing_metadata(await self._dispatcher.run(passing))
