"""The whole gRPC server on a loopback port, over the fake model."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distaff.serving.rpc.protos.distaff.v1 import (
    admin_pb2_grpc,
    generation_pb2,
    inference_pb2_grpc,
    models_pb2_grpc,
    tokenization_pb2_grpc,
)
from distaff.serving.rpc.server import RpcServer
from distaff.serving.rpc.settings import RpcSettings

from ..served import Served, serving

EOF: Any = vars(grpc.aio)["EOF"]  # which the library's types leave out
INSIDES = ("Traceback", "/somewhere", ".py", "Error(", "jax", "distaff.serving")
"""Words that no client may be told."""


@dataclass
class Native:
    """A server, what is behind it, and ways to it."""

    served: Served
    server: RpcServer
    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.inference: Any = inference_pb2_grpc.InferenceStub(self.channel)
        self.tokenization: Any = tokenization_pb2_grpc.TokenizationStub(self.channel)
        self.models: Any = models_pb2_grpc.ModelsStub(self.channel)
        self.admin: Any = admin_pb2_grpc.AdminStub(self.channel)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@asynccontextmanager
async def native(
    *,
    settings: RpcSettings | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    channel_options: Sequence[tuple[str, Any]] = (),
    server: Callable[[Served], dict[str, Any]] = lambda served: {},
    **options: Any,
) -> AsyncIterator[Native]:
    """`server` gives further arguments of RpcServer, `options` are those of `serving`; at the end nothing is held."""
    async with serving(**options) as served:
        made = RpcServer(served.front, settings or RpcSettings(port=0), **server(served))
        await made.start()
        target, arguments = f"127.0.0.1:{made.port}", list(channel_options)
        if credentials is None:
            channel = grpc.aio.insecure_channel(target, options=arguments)
        else:
            channel = grpc.aio.secure_channel(target, credentials, options=arguments)
        try:
            async with channel:
                yield Native(served, made, channel)
            served.programs.gate.set()
        finally:
            await made.stop()
        await served.check_empty()


def request(text: str = "hello", tokens: int = 8, **fields: Any) -> generation_pb2.GenerateRequest:
    """A request with a seed; `sampling` is merged."""
    sampling = {"max_tokens": tokens, "seed": 0, **fields.pop("sampling", {})}
    prompt = {} if {"token_ids", "chat"} & fields.keys() else {"text": text}
    return generation_pb2.GenerateRequest(**prompt, sampling=sampling, **fields)


@dataclass(frozen=True)
class Refusal:
    """How an RPC ended."""

    code: str
    message: str
    field: str | None
    retry_after: float | None


async def refusal(call: Any) -> Refusal:
    """What a client is told; the call must fail."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return read_refusal(error)
    raise AssertionError("it was answered")


def read_refusal(error: grpc.aio.AioRpcError) -> Refusal:
    field = retry_after = None
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    for detail in status.details if status is not None else ():
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            field = bad.field_violations[0].field
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(error.code().name, error.details() or "", field, retry_after)
