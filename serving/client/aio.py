"""A client for an event loop."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from . import calls
from .attempts import Attempts
from .calls import Call
from .collector import BatchCollector
from .errors import ServerError
from .requests import Prompt
from .results import Embedding, Load, Model, Result, Score
from .retry import RetryPolicy
from .stream import AsyncBatchStream, AsyncEventStream, AsyncMessageStream, Open
from .stubs import Stubs
from .target import Target


class AsyncClient:
    """As Client, whose arguments and methods it has, for `await`, `async for` and `async with`.

    async with AsyncClient("127.0.0.1:50051") as client:
        async for text in client.generate_stream("Once upon a time").text():
            print(text, end="")
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.target = Target(target, token, ca, certificate, key, server_name)
        self._timeout, self._retry = timeout, retry or RetryPolicy()
        self._channel = self.target.aio_channel()
        self._stubs = Stubs(self._channel)

    async def close(self) -> None:
        """Ends calls that run. Closing again does nothing."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Inference

    async def generate(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Result:
        """The whole answer. Options are the sampling parameters (docs/sampling.md) besides those of every request."""
        return await self._ask(calls.generate(prompt, options), timeout)

    def generate_stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> AsyncEventStream:
        """The answer as it comes; `chunk_tokens`, `omit_text` and `omit_token_ids` say how it is cut."""
        call = calls.stream(prompt, options)
        return AsyncEventStream(self._opening(call), self._attempts(timeout), call.read)

    async def batch(
        self, prompts: Sequence[Prompt], *, timeout: float | None = None, **options: Any
    ) -> list[Result | ServerError]:
        """The answers to many prompts in one call, in their order; one that failed is its error."""
        answers = BatchCollector(len(prompts))
        items = [(str(number), prompt, options) for number, prompt in enumerate(prompts)]
        async with self.batch_stream(items, timeout=timeout) as stream:
            async for item in stream:
                answers.add(item)
        return answers.results()

    def batch_stream(
        self, items: Sequence[tuple[str, Prompt, Mapping[str, Any]]], *, timeout: float | None = None
    ) -> AsyncBatchStream:
        """Many prompts in one call, (key, prompt, options) each; their events as they come, with the item's key."""
        call = calls.batch(items)
        return AsyncMessageStream(self._opening(call), self._attempts(timeout), call.read)

    async def score(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Score:
        """How likely the model finds a text; `num_top` asks for the likeliest tokens at each place too."""
        return await self._ask(calls.score(prompt, options), timeout)

    async def embed(
        self, prompt: Prompt, *, pooling: str = "mean", timeout: float | None = None, **options: Any
    ) -> Embedding:
        """A text as a vector: the mean of its last hidden states, or the "last" one."""
        return await self._ask(calls.embed(prompt, pooling, options), timeout)

    async def cancel(self, *request_ids: str, timeout: float | None = None) -> dict[str, bool]:
        """Ends requests; whether each was running."""
        return await self._ask(calls.cancel(request_ids), timeout)

    # Tokens

    async def tokenize(self, text: str, *, add_special: bool = True, timeout: float | None = None) -> list[int]:
        """The token ids of a text."""
        return await self._ask(calls.tokenize(text, add_special), timeout)

    async def detokenize(self, ids: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of token ids."""
        return await self._ask(calls.detokenize(ids), timeout)

    async def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Any
    ) -> tuple[str, list[int]]:
        """A conversation as the model reads it: its text and token ids."""
        return await self._ask(calls.apply_chat_template(messages, options), timeout)

    # The server

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """What is served."""
        return await self._ask(calls.models(), timeout)

    async def model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """The model of this name; "" is the one that is served."""
        return await self._ask(calls.model(name), timeout)

    async def healthy(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server takes requests."""
        return await self._ask(calls.healthy(service), timeout)

    async def load(self, *, timeout: float | None = None) -> Load:
        """How busy the server is (an admin call)."""
        return await self._ask(calls.load(), timeout)

    async def drain(self, grace: float | None = None, *, timeout: float | None = None) -> None:
        """Shuts the server down, which gives running requests `grace` seconds (an admin call)."""
        await self._ask(calls.drain(grace), timeout)

    async def flush_prefix_cache(self, *, timeout: float | None = None) -> int:
        """Has the server forget prompts; how many pages that gave back (an admin call)."""
        return await self._ask(calls.flush_prefix_cache(), timeout)

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout if timeout is None else timeout, self.target.place)

    def _opening(self, call: Call[Any]) -> Open:
        method = call.method(self._stubs)
        return lambda seconds: method(call.request, timeout=seconds, metadata=self.target.metadata)

    async def _ask[T](self, call: Call[T], timeout: float | None) -> T:
        """One request, one answer."""
        attempts, begin = self._attempts(timeout), self._opening(call)
        while True:
            try:
                return call.read(await begin(attempts.begin()))
            except grpc.aio.AioRpcError as failure:
                await asyncio.sleep(attempts.wait_after(failure))
