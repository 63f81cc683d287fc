"""Brings calls to servers: the policy ranks them, the best one gets the call, and until the first answer has come
another one may take over. After it a failure is the client's to see."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs

from ..client.errors import error_of
from .asked import Asked
from .policy import ranked
from .prefix_map import PrefixMap
from .refusal import NobodyServesError
from .replay import Replay
from .upstream import Upstream

_log = logging.getLogger(__name__)
_DROPPED = ("user-agent", "te", "content-type", "host")

type Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Passing:
    """A call on its way through.

    Attributes:
        asked: what was read of it.
        repeatable: whether it may be made twice.
        replay: the client's messages.
        metadata: what the client sent with it.
        left: the seconds that its client waits yet, None for any.
        on_begin: told the server's metadata, before `write` gets its first answer.
    """

    method: str
    asked: Asked
    repeatable: bool
    replay: Replay
    metadata: Metadata
    left: Callable[[], float | None]
    on_begin: Callable[[Metadata], Awaitable[None]]
    write: Callable[[bytes], Awaitable[None]]


class Dispatcher:
    """
    Args:
        upstreams: the servers.
        prefixes: which of them has seen which prompts.
    """

    def __init__(self, upstreams: Sequence[Upstream], prefixes: PrefixMap) -> None:
        self.upstreams = {upstream.name: upstream for upstream in upstreams}
        self._prefixes = prefixes
        self._turn = 0

    @property
    def ready(self) -> list[Upstream]:
        """The servers that calls may be sent to."""
        return [upstream for upstream in self.upstreams.values() if upstream.standing.ready]

    async def run(self, call: Passing) -> Metadata:
        """Has a server answer; returns its trailing metadata.

        Raises:
            AioRpcError: how a server ended it.
            NobodyServesError: no server could be asked.
        """
        failure: grpc.aio.AioRpcError | None = None
        refusal: grpc.aio.AioRpcError | None = None
        tried: list[str] = []
        while (upstream := self._choose(call.asked, tried)) is not None:
            if failure is not None:
                reason = f"{failure.code().name}, {failure.details()}"
                _log.info("%s takes over a call that %s failed (%s)", upstream.name, tried[-1], reason)
            tried.append(upstream.name)
            known = self._prefixes.matches(call.asked.blocks).get(upstream.name, 0)
            self._prefixes.remember(upstream.name, call.asked.blocks)
            self._turn += 1
            upstream.standing.turn = self._turn
            attempt = _Attempt(upstream, call)
            try:
                return await attempt.run(max(0, call.asked.tokens - known))
            except grpc.aio.AioRpcError as error:
                failure = error
                told = error_of(error, upstream.name)
                if told.is_lost:
                    upstream.lost()
                else:
                    refusal = error
                safe = told.is_refusal or call.repeatable
                if attempt.begun or not (told.is_passing and safe and call.replay.whole):
                    raise
        if refusal is not None:  # of a server that is there, whatever became of others
            raise refusal
        raise NobodyServesError(len(self.upstreams)) from failure

    async def ask_all(self, method: str, message: bytes, metadata: Metadata, timeout: float | None) -> list[bytes]:
        """One message to every server that can be reached; the answers of those that gave one.

        Raises:
            AioRpcError: how a server ended it, where none answered.
            NobodyServesError: no server could be asked.
        """
        calls = [
            upstream.channel.unary_unary(method)(message, timeout=timeout, metadata=_forwarded(metadata))
            for upstream in self.ready
        ]
        answers: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        given = [answer for answer in answers if isinstance(answer, bytes)]
        if given:
            return given
        for answer in answers:
            if isinstance(answer, grpc.aio.AioRpcError) and not error_of(answer, "").is_lost:
                raise answer
        raise NobodyServesError(len(self.upstreams))

    def _choose(self, asked: Asked, tried: Sequence[str]) -> Upstream | None:
        standings = [upstream.standing for upstream in self.upstreams.values() if upstream.name not in tried]
        best = ranked(standings, asked.tokens, self._prefixes.matches(asked.blocks))
        return self.upstreams[best[0].name] if best else None


class _Attempt:
    """One server's try at a call.

    Attributes:
        begun: whether something of its answer has come.
    """

    def __init__(self, upstream: Upstream, call: Passing) -> None:
        self._upstream, self._passing = upstream, call
        self.begun = False

    async def run(self, pending: int) -> Metadata:
        """
        Args:
            pending: tokens of the prompt that the server has to compute.
        """
        passing, standing = self._passing, self._upstream.standing
        standing.in_flight += 1
        standing.pending_tokens += pending
        call: Any = self._upstream.channel.stream_stream(passing.method)(
            timeout=passing.left(), metadata=_forwarded(passing.metadata)
        )
        sending = asyncio.create_task(_send(call, passing.replay))
        try:
            while (answer := await call.read()) is not EOF:
                if not self.begun:
                    self.begun = True
                    passing.replay.keep_no_longer()
                    standing.pending_tokens -= pending
                    pending = 0
                    await passing.on_begin(await call.initial_metadata())
                await passing.write(answer)
            return await call.trailing_metadata()
        finally:
            call.cancel()
            sending.cancel()
            standing.in_flight -= 1
            standing.pending_tokens -= pending
            await asyncio.gather(sending, return_exceptions=True)  # before another one reads the messages


async def _send(call: Any, replay: Replay) -> None:
    number = 0
    try:
        while (message := await replay.message(number)) is not None:
            await call.write(message)
            number += 1
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the reading side has the status


def _forwarded(given: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Of what the client sent, all that does not belong to its connection."""
    return tuple((name, value) for name, value in given if name not in _DROPPED and not name.startswith(("grpc-", ":")))
