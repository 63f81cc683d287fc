"""Requests over gRPC, in the native protocol."""

import secrets

import grpc
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs

from ..client.errors import error_of
from ..client.requests import generate_request
from ..client.stubs import Stubs
from ..client.target import Target
from ..rpc.protos.distaff.v1 import models_pb2
from .generator import Clock
from .record import Record
from .trace import Ask


class GrpcTransport:
    """Streams Inference.Generate. Use it as an async context manager.

    Nothing is tried again: what a server refuses is counted.

    Args:
        model: what requests name; "" names none.
        options: of every request, as Client.generate takes them.
    """

    def __init__(self, target: Target, *, model: str = "", options: dict[str, object] | None = None) -> None:
        self._target = target
        # Prompts of one run are not found computed by the next.
        self._options = {
            "ignore_eos": True,
            "temperature": 0.0,
            "model": model or None,
            "cache_salt": secrets.token_hex(8),
        }
        self._options |= options or {}
        self._channel = target.aio_channel()
        self._stubs = Stubs(self._channel)
        self.model = model
        self.vocab_size: int | None = None

    async def __aenter__(self) -> "GrpcTransport":
        try:
            answer = await self._stubs.models.GetModel(
                models_pb2.GetModelRequest(name=self.model), metadata=self._target.metadata, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, self._target.place) from failure
        self.model, self.vocab_size = answer.model.name, answer.model.vocab_size
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        """One request; what comes goes into `record`."""
        request = generate_request(ask.prompt, {**self._options, "max_tokens": ask.max_tokens})
        call = self._stubs.inference.Generate(request, metadata=self._target.metadata)
        try:
            while (event := await call.read()) is not EOF:
                kind = event.WhichOneof("event")
                if kind == "delta":
                    record.arrivals.append((clock(), len(event.delta.token_ids) or 1))
                elif kind == "admitted":
                    record.prompt_tokens = event.admitted.prompt_tokens
                    record.cached_tokens = event.admitted.cached_prompt_tokens
                elif kind == "finished":
                    record.output_tokens += event.finished.completion_tokens
        except grpc.aio.AioRpcError as failure:
            record.error = failure.code().name
        finally:
            call.cancel()
