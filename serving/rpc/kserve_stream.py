"""Many requests on one stream of the KServe protocol."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from .protos.kserve import inference_pb2 as pb

MAX_UNDER_WAY = 256
"""Requests of one stream that are worked on at once; more are read when some have ended."""
MAX_WAITING = 64
"""Messages that wait for the transport. Beyond, requests wait with what they have to send, and the front looks after
readers that are too slow."""

type Send = Callable[[pb.ModelStreamInferResponse], Awaitable[None]]


async def serve_stream(
    requests: AsyncIterator[pb.ModelInferRequest], serve: Callable[[pb.ModelInferRequest, Send], Awaitable[None]]
) -> AsyncGenerator[pb.ModelStreamInferResponse]:
    """Serves the requests of a stream beside each other, and yields their messages as they come.

    It ends when the client has sent all of its requests and each is answered; closed early, it ends those under way.

    Args:
        requests: as they arrive.
        serve: answers one, and raises nothing.

    Raises:
        Exception: what reading the requests failed with.
    """
    messages: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue()
    room, places = asyncio.Semaphore(MAX_WAITING), asyncio.Semaphore(MAX_UNDER_WAY)

    async def send(message: pb.ModelStreamInferResponse) -> None:
        await room.acquire()
        messages.put_nowait(message)

    async def one(request: pb.ModelInferRequest) -> None:
        try:
            await serve(request, send)
        finally:
            places.release()

    async def read() -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            await places.acquire()
            async for request in requests:
                task = asyncio.create_task(one(request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await places.acquire()
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            messages.put_nowait(None)

    reader = asyncio.create_task(read(), name="distaff-kserve-stream")
    try:
        while (message := await messages.get()) is not None:
            room.release()
            yield message
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
