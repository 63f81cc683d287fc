"""Requests over gRPC, in the native protocol."""

import itertools
import secrets
from typing import Any

import grpc
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs

from ..client.errors import error_of
from ..client.requests import generate_request
from ..client.stubs import Stubs
from ..client.target import Target
from ..rpc.protos.distaff.v1 import models_pb2
from .generator import Clock
from .record import Record
from .trace import Ask, message_of

_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)  # channels to one address share one by default


class GrpcTransport:
    """Streams Inference.Generate. Use it as an async context manager.

    Nothing is tried again: what a server refuses is counted.

    Args:
        model: what requests name; "" names none.
        chat: prompts are messages of a user.
        connections: requests go over each in turn.
    """

    def __init__(self, target: Target, *, model: str = "", chat: bool = False, connections: int = 1) -> None:
        self._target, self._chat = target, chat
        self._named = model or None
        self._channels = [target.aio_channel(_OWN_CONNECTION) for _ in range(connections)]
        self._stubs = itertools.cycle([Stubs(channel) for channel in self._channels])
        self.model = model
        self.vocab_size: int | None = None
        self.begin_run()

    async def __aenter__(self) -> "GrpcTransport":
        try:
            answers = [  # each connects now, and not amid the load
                await next(self._stubs).models.GetModel(
                    models_pb2.GetModelRequest(name=self.model), metadata=self._target.metadata
                )
                for _ in self._channels
            ]
        except grpc.aio.AioRpcError as failure:
            await self.__aexit__()
            raise error_of(failure, self._target.place) from failure
        self.model, self.vocab_size = answers[0].model.name, answers[0].model.vocab_size
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    def begin_run(self) -> None:
        """Requests from now on do not find computed what earlier ones have asked."""
        self._salt = secrets.token_hex(8)

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        """One request; what comes goes into `record`."""
        options: dict[str, Any] = {
            "ignore_eos": True,
            "temperature": 0.0,
            "max_tokens": ask.max_tokens,
            "model": self._named,
            "cache_salt": self._salt,
        }
        request = generate_request([message_of(ask)] if self._chat else ask.prompt, options)
        call = next(self._stubs).inference.Generate(request, metadata=self._target.metadata)
        try:
            while (event := await call.read()) is not EOF:
                kind = event.WhichOneof("event")
                if kind == "delta":
                    if event.delta.token_ids:
                        record.arrivals.append((clock(), len(event.delta.token_ids)))
                elif kind == "admitted":
                    record.prompt_tokens = event.admitted.prompt_tokens
                    record.cached_tokens = event.admitted.cached_prompt_tokens
                elif kind == "finished":
                    record.output_tokens += event.finished.completion_tokens
        except grpc.aio.AioRpcError as failure:
            record.error = failure.code().name
        finally:
            call.cancel()
