"""The service distaff.v1.Inference."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from ...backends.errors import InvalidParameterError
from ..front import Delta, Finished, Front, OverloadedError, Reason, Stream
from ..results import Completion, Embedding, Score
from .callers import called, current
from .chunks import Chunks
from .failures import Context, told
from .native_events import (
    admitted_event,
    delta_event,
    finished_event,
    logprob_message,
    result_message,
    timings_message,
    usage_message,
)
from .native_request import embed_call, generate_call, score_call
from .protos.distaff.v1 import generation_pb2 as pb
from .protos.distaff.v1 import inference_pb2, inference_pb2_grpc

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
MAX_ITEMS = 65_536
_BATCHES_AHEAD = 2
"""Batches of the engine that the items of one RPC fill at once; the rest of them wait here."""

_LONGEST_PAUSE = 0.25
"""Seconds until an item that found no place looks again."""

type Write = Callable[[pb.GenerateEvent], Awaitable[None]]


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """
    Args:
        front: what serves the calls.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        inference_pb2_grpc.add_InferenceServicer_to_server(self, server)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        async with await self._front.open(called(generate_call(request), context)) as stream:
            await _send(stream, request.output, context.write)
        await _end(stream, context)

    async def GenerateUnary(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResult:
        async with await self._front.open(called(generate_call(request), context)) as stream:
            completion = await stream.result()
        await _end(stream, context)
        assert isinstance(completion, Completion)
        return result_message(stream, completion)

    async def GenerateBatch(self, request: inference_pb2.GenerateBatchRequest, context: Context) -> None:
        keys = [item.key for item in request.items]
        if not keys or len(keys) > MAX_ITEMS:
            raise InvalidParameterError("items", f"{len(keys)} items", f"1 to {MAX_ITEMS}")
        if "" in keys or len(set(keys)) < len(keys):
            raise InvalidParameterError("items.key", "empty or not unique", "a key of its own for each item")
        items, writing = iter(request.items), asyncio.Lock()

        async def work() -> None:
            for item in items:
                await self._item(item, context, writing)

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(len(keys), _BATCHES_AHEAD * max(1, self._front.card.max_batch))):
                workers.create_task(work())

    async def Score(self, request: inference_pb2.ScoreRequest, context: Context) -> inference_pb2.ScoreResponse:
        async with await self._front.open(called(score_call(request), context)) as stream:
            score = await stream.result()
        assert isinstance(score, Score)
        return inference_pb2.ScoreResponse(
            request_id=stream.id,
            token_ids=score.token_ids,
            logprobs=[logprob_message(entry) for entry in score.logprobs if entry is not None],
            total=score.total,
            perplexity=score.perplexity,
            usage=usage_message(stream.usage),
            timings=timings_message(stream.timings),
        )

    async def Embed(self, request: inference_pb2.EmbedRequest, context: Context) -> inference_pb2.EmbedResponse:
        async with await self._front.open(called(embed_call(request), context)) as stream:
            embedding = await stream.result()
        assert isinstance(embedding, Embedding)
        return inference_pb2.EmbedResponse(
            request_id=stream.id,
            embedding=embedding.vector.tolist(),
            token_ids=embedding.prompt_token_ids,
            usage=usage_message(stream.usage),
            timings=timings_message(stream.timings),
        )

    async def Cancel(self, request: inference_pb2.CancelRequest, context: Context) -> inference_pb2.CancelResponse:
        tenant = current.get().tenant
        found = [self._front.cancel(id, tenant=tenant) for id in request.request_ids]
        states = {True: inference_pb2.CANCEL_STATE_CANCELLED, False: inference_pb2.CANCEL_STATE_UNKNOWN}
        return inference_pb2.CancelResponse(states=[states[each] for each in found])

    async def _item(self, item: inference_pb2.BatchItem, context: Context, writing: asyncio.Lock) -> None:
        """Answers one item; its failure is its own."""

        async def write(outcome: inference_pb2.BatchItemEvent) -> None:
            async with writing:
                await context.write(outcome)

        async def write_event(event: pb.GenerateEvent) -> None:
            await write(inference_pb2.BatchItemEvent(key=item.key, event=event))

        try:
            async with await self._open_when_possible(item.request, context) as stream:
                await _send(stream, item.request.output, write_event)
            if stream.cause is not None:
                raise stream.cause_error()
        except Exception as failure:
            status = told(failure)
            error = inference_pb2.ItemError(
                code=status.grpc,
                message=status.message,
                field=status.field or "",
                retry_after_seconds=status.retry_after or 0.0,
            )
            await write(inference_pb2.BatchItemEvent(key=item.key, error=error))

    async def _open_when_possible(self, request: pb.GenerateRequest, context: Context) -> Stream:
        """An item waits for its place: the client has sent all it has, and cannot send it slower."""
        while True:
            try:
                return await self._front.open(called(generate_call(request), context))
            except OverloadedError as error:
                await asyncio.sleep(min(error.retry_after, _LONGEST_PAUSE))


async def _send(stream: Stream, output: pb.OutputOptions, write: Write) -> None:
    """Writes a stream's events; the last one tells usage and timings too.

    Where a reader takes nothing this waits with it, and after the stall limit with what is left of an ended stream:
    gRPC can send no status either before what was written is taken.
    """
    chunks = Chunks(output.chunk_tokens)
    held: Finished | None = None
    async for event in stream:
        if held is not None:
            await write(finished_event(held, None))
            held = None
        if isinstance(event, Delta):
            ready = chunks.add(event)
            if ready is not None:
                await write(delta_event(ready, output))
        elif isinstance(event, Finished):
            rest = chunks.rest(event.index)
            if rest is not None:
                await write(delta_event(rest, output))
            held = event
        else:
            await write(admitted_event(event))
    if held is not None:
        await write(finished_event(held, stream))


async def _end(stream: Stream, context: Context) -> None:
    """A stream that was cut from outside is no success, whatever of it was sent."""
    if stream.cause is Reason.DRAINED:
        # Not UNAVAILABLE, which would be tried again by itself: part of an answer was given.
        await context.abort(grpc.StatusCode.ABORTED, "the server went down before the answer was complete")
    if stream.cause is not None:
        raise stream.cause_error()
