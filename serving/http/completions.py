"""The two completion endpoints: from a body to Calls, from Streams to a response."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.metadata import version
from string import punctuation
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError
from starlette.requests import Request

from ...backends.errors import UsageError
from ..front import (
    Admitted,
    Call,
    Delta,
    Event,
    Finished,
    Front,
    Reason,
    Stream,
)
from ..front.call import MAX_ID_LEN
from ..logprobs import PromptLogprobs
from ..results import Completion, Score, Usage
from ..types import Kind
from .bodies import ChatBody, CompletionBody
from .errors import error_object, http_status, invalid_body, log_unforeseen
from .exchange import Exchange
from .shapes import Answer, Shape, shape_of, usage_object
from .spelling import Spelling

TENANT = "distaff.tenant"
"""Where a guard leaves in the scope who calls."""
_DONE = b"data: [DONE]\n\n"
_MANY_TOKENS = 2000
_LARGE_BODY = 2**16
"""Bytes beyond which a body is read beside the loop: a megabyte may take 30 ms, of many short messages 140."""
_PLAIN = "".join(set(punctuation) - {"%", ","})


class Completions:
    """What /v1/completions and /v1/chat/completions do.

    Args:
        front: the engine.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._spelling = Spelling(front.tokenizer)
        card = front.card
        self._fingerprint = "-".join(filter(None, ("distaff", version("distaff"), card.backend, card.dtype)))

    async def complete(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        body, calls = await self._read(CompletionBody, exchange.body)
        await self._serve(exchange, body, calls)

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        body, calls = await self._read(ChatBody, exchange.body)
        await self._serve(exchange, body, calls)

    async def _read[B: (CompletionBody, ChatBody)](self, kind: type[B], data: bytes) -> tuple[B, list[Call]]:
        """What is refused here never reaches the front, which counts all others that are refused."""
        try:
            if len(data) > _LARGE_BODY:
                return await asyncio.to_thread(_parse, kind, data)
            return _parse(kind, data)
        except UsageError as error:
            self._front.counters.refused[http_status(error).kind] += 1
            raise

    async def _serve(self, exchange: Exchange, body: CompletionBody | ChatBody, calls: Sequence[Call]) -> None:
        shape = shape_of(body, self._front.card.name, self._spelling, fingerprint=self._fingerprint)
        async with contextlib.AsyncExitStack() as stack:
            streams: list[Stream] = []
            for call in calls:
                streams.append(await stack.enter_async_context(await self._open(exchange.request, call)))
            if calls[0].kind is Kind.SCORE:
                await self._score(exchange, streams, calls, shape)
            elif body.stream:
                await _Writer(exchange, shape, streams, body.n or 1).write()
            else:
                await self._collect(exchange, streams, shape, body.n or 1)

    async def _open(self, request: Request, call: Call) -> Stream:
        headers = request.headers
        told = headers.get("x-request-id", "")
        caller = {"tenant": request.scope.get(TENANT, ""), "traceparent": headers.get("traceparent")}
        taken = self._front.has(told, tenant=caller["tenant"])  # by a proxy's first try, or by another prompt
        if not (call.id or taken or len(told) > MAX_ID_LEN) and told.isprintable():
            call = replace(call, id=told)
        return await self._front.open(replace(call, **caller))

    async def _collect(self, exchange: Exchange, streams: Sequence[Stream], shape: Shape, n: int) -> None:
        """Waits for everything and answers with it."""
        answers = [Answer() for _ in range(len(streams) * n)]
        seeds: dict[int, int | None] = {}
        async with aclosing(_merged(streams)) as merged:
            async for events in merged:
                for at, event in events:
                    if isinstance(event, Admitted):
                        seeds[at] = event.params.seed
                    elif isinstance(event, Delta):
                        answers[at * n + event.index].add(event)
                    else:
                        answer = answers[at * n + event.index]
                        answer.reason, answer.stopped_by = event.reason, event.stopped_by
                        if not event.reason.is_complete:
                            raise streams[at].cause_error()
        prompts: dict[int, PromptLogprobs] = {}
        for at, stream in enumerate(streams):
            result = await stream.result()
            if isinstance(result, Completion) and result.prompt_logprobs is not None:
                prompts[at] = result.prompt_logprobs
        usage = total_usage(streams)

        def render() -> dict[str, Any]:
            choices = [shape.choice(at, answer, prompts.get(at // n, ())) for at, answer in enumerate(answers)]
            return shape.response(choices, usage)

        # Naming thousands of tokens takes a while: not in the loop, where everybody else waits for it.
        value = await asyncio.to_thread(render) if prompts or usage.completion_tokens > _MANY_TOKENS else render()
        await exchange.answer(value, response_headers(streams, [seeds[at] for at in sorted(seeds)]))

    async def _score(self, exchange: Exchange, streams: Sequence[Stream], calls: Sequence[Call], shape: Shape) -> None:
        """`echo` with max_tokens 0: the prompts themselves, with how likely they are."""
        choices: list[dict[str, Any]] = []
        scores = await asyncio.gather(*(stream.result() for stream in streams))
        for index, (score, call) in enumerate(zip(scores, calls, strict=True)):
            assert isinstance(score, Score)
            text = call.prompt if isinstance(call.prompt, str) else await self._front.detokenize(score.token_ids)
            answer = Answer([text], list(score.token_ids), [], Reason.LENGTH)
            choices.append(await asyncio.to_thread(shape.choice, index, answer, score.logprobs))
        await exchange.answer(shape.response(choices, total_usage(streams)), response_headers(streams, []))


class _Writer:
    """Streams what comes of several calls as server-sent events."""

    def __init__(self, exchange: Exchange, shape: Shape, streams: Sequence[Stream], n: int) -> None:
        self._exchange = exchange
        self._shape = shape
        self._streams = streams
        self._n = n

    async def write(self) -> None:
        """Everything, to the end; an error that comes before the first event is the caller's."""
        async with aclosing(_merged(self._streams)) as merged:
            await self._write(merged, await anext(merged))

    async def _write(
        self, merged: "AsyncIterator[list[tuple[int, Event]]]", admitted: "list[tuple[int, Event]]"
    ) -> None:
        shape, exchange = self._shape, self._exchange
        # The head goes out with the first prompt that has a slot: the seeds of others may not be drawn yet.
        firsts = admitted if len(self._streams) == 1 else []
        seeds = [event.params.seed for _, event in firsts if isinstance(event, Admitted)]
        headers = response_headers(self._streams, seeds)
        await exchange.begin("text/event-stream; charset=utf-8", {"cache-control": "no-cache", **headers})
        try:
            begun = [shape.begin(index) for index in range(len(self._streams) * self._n)]
            parts = [sse(shape.chunk([choice])) for choice in begun if choice is not None]
            parts += self._chunks(admitted)
            await exchange.write(b"".join(parts))
            async for events in merged:
                # Those that came together go out together, each an event of its own.
                data = b"".join(self._chunks(events))
                if data:
                    await exchange.write(data)
            tail = [sse(shape.chunk([], total_usage(self._streams)))] if shape.includes_usage else []
            await exchange.write(b"".join([*tail, _DONE]), last=True)
        except Exception as error:
            status = http_status(error)
            log_unforeseen(error, status)
            value = error_object(status, {"usage": usage_object(total_usage(self._streams))})
            await exchange.write(sse(value) + _DONE, last=True)

    def _chunks(self, events: "Sequence[tuple[int, Event]]") -> list[bytes]:
        parts: list[bytes] = []
        for at, event in events:
            if isinstance(event, Delta):
                parts.append(sse(self._shape.chunk([self._shape.delta(at * self._n + event.index, event)])))
            elif isinstance(event, Finished):
                if not event.reason.is_complete:
                    raise self._streams[at].cause_error()
                choice = self._shape.end(at * self._n + event.index, event.reason, event.stopped_by)
                parts.append(sse(self._shape.chunk([choice])))
        return parts


async def _merged(streams: Sequence[Stream]) -> "AsyncGenerator[list[tuple[int, Event]]]":
    """The events of several streams as they come, each with its stream's place."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield [(0, event), *((0, more) for more in streams[0].pending())]
        return
    waiting = {asyncio.ensure_future(anext(stream)): at for at, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            events: list[tuple[int, Event]] = []
            for task in done:
                at = waiting.pop(task)
                with contextlib.suppress(StopAsyncIteration):
                    events.append((at, task.result()))
                    events += ((at, more) for more in streams[at].pending())
                    waiting[asyncio.ensure_future(anext(streams[at]))] = at
            if events:
                yield events
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def sse(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n\n"


def total_usage(streams: Sequence[Stream]) -> Usage:
    """Of several prompts together."""
    each = [stream.usage for stream in streams]
    return Usage(
        sum(usage.prompt_tokens for usage in each),
        sum(usage.completion_tokens for usage in each),
        sum(usage.cached_tokens for usage in each),
    )


def response_headers(streams: Sequence[Stream], seeds: Sequence[int | None]) -> dict[str, str]:
    """The ids of the calls, percent-encoded where a header cannot hold them, and the seeds that repeat their draws."""
    headers = {"x-request-id": ",".join(quote(stream.id, safe=_PLAIN) for stream in streams[:16])}
    drawn = [str(seed) for seed in seeds[:16] if seed is not None]
    return {**headers, "x-distaff-seed": ",".join(drawn)} if drawn else headers


def _parse[B: (CompletionBody, ChatBody)](kind: type[B], data: bytes) -> tuple[B, list[Call]]:
    try:
        body = kind.model_validate_json(data)
        return body, body.calls()
    except ValidationError as error:
        raise invalid_body(error) from None
