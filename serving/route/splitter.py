"""Splits a GenerateBatch: each item goes to a server of its own as a Generate, when there is room for it.

So items find their shared prefixes, a slow server gets fewer of them, and one that breaks down takes none along that
had not begun: those go elsewhere, and those that had fail alone.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
from google.protobuf.message import DecodeError

from ..client.errors import OverloadedError, error_of
from ..rpc.protos.distaff.v1 import generation_pb2, inference_pb2
from .dispatch import Dispatcher, Metadata, Passing
from .names import Names, TakenError, caller_of
from .native import GENERATE, read_native
from .refusal import RETRY_SECONDS, Context, NobodyServesError
from .replay import Replay

_BATCHES_AHEAD = 2
"""Batches of each server that are filled at once, as a server itself does; the rest of the items wait here."""

_LONGEST_PAUSE = 0.25
"""Seconds until an item that found no place looks again."""

type Items = Sequence[inference_pb2.BatchItem]


class Splitter:
    """
    Args:
        dispatcher: brings items to the servers.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def items_of(self, data: bytes) -> Items | None:
        """The items of a GenerateBatchRequest; None for one that a server must say something against."""
        try:
            items = inference_pb2.GenerateBatchRequest.FromString(data).items
        except DecodeError:
            return None
        keys = {item.key for item in items}
        return items if keys and "" not in keys and len(keys) == len(items) else None

    async def answer(self, items: Items, metadata: Metadata, context: Context, names: Names) -> None:
        """Writes what comes of all items to the client.

        Raises:
            NobodyServesError: there is no server.
        """
        ready = self._dispatcher.ready
        if not ready:
            raise NobodyServesError(len(self._dispatcher.upstreams))
        room = sum(_BATCHES_AHEAD * upstream.standing.max_batch for upstream in ready)
        job = _Job(self._dispatcher, metadata, context, names)
        waiting = iter(items)

        async def work() -> None:
            for item in waiting:
                await job.answer(item)

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(room, len(items))):
                workers.create_task(work())


class _Job:
    """One client's batch."""

    def __init__(self, dispatcher: Dispatcher, metadata: Metadata, context: Context, names: Names) -> None:
        self._dispatcher, self._metadata, self._context, self._names = dispatcher, metadata, context, names
        self._caller = caller_of(metadata)
        self._writing = asyncio.Lock()

    async def answer(self, item: inference_pb2.BatchItem) -> None:
        """One item; its failure is its own."""
        try:
            with self._names.hold(self._caller, item.request.request_id):
                while (pause := await self._try(item)) is not None:
                    await asyncio.sleep(pause)
        except grpc.aio.AioRpcError as failure:
            error = error_of(failure, "")
            await self._fail(item, error.code, failure.details() or "", error.field, error.retry_after)
        except NobodyServesError as failure:
            await self._fail(item, "UNAVAILABLE", str(failure), retry_after=RETRY_SECONDS)
        except TakenError as failure:
            await self._fail(item, "ALREADY_EXISTS", str(failure), "request_id")

    async def _try(self, item: inference_pb2.BatchItem) -> float | None:
        """Sends it to a server. Returns the seconds to wait where all of them are full, None at its end."""
        begun = False

        async def on_begin(_: Metadata) -> None:
            nonlocal begun
            begun = True

        async def write(data: bytes) -> None:
            event = generation_pb2.GenerateEvent.FromString(data)
            await self._write(inference_pb2.BatchItemEvent(key=item.key, event=event))

        passing = Passing(
            GENERATE,
            read_native(item.request),
            True,
            Replay(_once(item.request.SerializeToString())),
            self._metadata,
            left=self._context.time_remaining,
            on_begin=on_begin,
            write=write,
        )
        try:
            await self._dispatcher.run(passing)
        except grpc.aio.AioRpcError as failure:
            error = error_of(failure, "")
            if isinstance(error, OverloadedError) and error.is_passing and not begun:
                return min(error.retry_after or 0.0, _LONGEST_PAUSE)
            raise
        finally:
            passing.replay.close()
        return None

    async def _fail(
        self,
        item: inference_pb2.BatchItem,
        code: str,
        message: str,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        error = inference_pb2.ItemError(
            code=code, message=message, field=field or "", retry_after_seconds=retry_after or 0.0
        )
        await self._write(inference_pb2.BatchItemEvent(key=item.key, error=error))

    async def _write(self, event: inference_pb2.BatchItemEvent) -> None:
        async with self._writing:
            await self._context.write(event.SerializeToString())


async def _once(message: bytes) -> AsyncIterator[bytes]:
    yield message
