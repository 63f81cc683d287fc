"""Servers for the router's tests that know no message: each answer is the server's name and the message."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

METHOD = "/test.Echo/Say"
ONCE = "/test.Echo/Once"
"""A method whose calls may not be made twice."""


class Echo(grpc.GenericRpcHandler):
    """A server that answers each message with `copies` messages, and fails when it is told to.

    Attributes:
        refuse: a status with which every call ends before its first answer; with `retry_after` if that is set.
        break_after: answers after which a call ends with UNAVAILABLE.
        gap: seconds before each answer.
        got: the messages that came; `metadata`, what came with the last call.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.refuse: grpc.StatusCode | None = None
        self.retry_after: int | None = None
        self.break_after: int | None = None
        self.copies = 1
        self.gap = 0.0
        self.got: list[bytes] = []
        self.cancelled = 0
        self.metadata: dict[str, Any] = {}
        self.port = 0

    async def __aenter__(self) -> Self:
        self.health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.say(True)
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(None)

    async def say(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self.health.set("", status.SERVING if serving else status.NOT_SERVING)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        if not handler_call_details.method.startswith("/test.Echo/"):
            return None
        return grpc.stream_stream_rpc_method_handler(self.handle)

    async def handle(self, requests: AsyncIterator[bytes], context: Any) -> None:
        try:
            await self._handle(requests, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _handle(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self.metadata = {**dict(context.invocation_metadata() or ()), "left": context.time_remaining()}
        sent = 0
        async for message in requests:
            self.got.append(message)
            if self.refuse is not None:
                await context.abort(self.refuse, f"{self.name} refuses", self._details())
            for _ in range(self.copies):
                await asyncio.sleep(self.gap)
                if sent == self.break_after:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self.name} breaks")
                await context.write(self.name.encode() + b":" + message)
                sent += 1
        context.set_trailing_metadata((("x-load", self.name),))

    def _details(self) -> tuple[tuple[str, bytes], ...]:
        if self.retry_after is None or self.refuse is None:
            return ()
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=self.retry_after)))
        status = status_pb2.Status(code=self.refuse.value[0], message="full", details=[packed])
        return (("grpc-status-details-bin", status.SerializeToString()),)
