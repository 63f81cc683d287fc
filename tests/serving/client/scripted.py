"""A server of the native protocol that says what a test wrote down: for the client's and the load's tests."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from distaff.serving.rpc.protos.distaff.v1 import (
    generation_pb2,
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)


class Refusal(Exception):
    """What ends a call: a status, with the details that it names."""

    def __init__(self, code: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(code)
        self.code, self.field, self.retry_after = grpc.StatusCode[code], field, retry_after

    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        details = []
        for message in self._messages():
            details.append(any_pb2.Any())
            details[-1].Pack(message)
        status = status_pb2.Status(code=self.code.value[0], message="refused", details=details)
        return (("grpc-status-details-bin", status.SerializeToString()),) if details else ()

    def _messages(self) -> list[Any]:
        messages: list[Any] = []
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description="wrong")
            messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            delay = duration_pb2.Duration(nanos=int(self.retry_after * 1e9))
            messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return messages


def admitted(seed: int = 7, cached: int = 0) -> generation_pb2.GenerateEvent:
    effective = generation_pb2.SamplingParams(seed=seed, stop=["x"], logit_bias={3: 1.5}, max_tokens=4)
    event = generation_pb2.Admitted(
        request_id="r", queue_seconds=0.5, prompt_tokens=5, cached_prompt_tokens=cached, effective=effective
    )
    return generation_pb2.GenerateEvent(admitted=event)


def delta(text: str, *ids: int, index: int = 0) -> generation_pb2.GenerateEvent:
    return generation_pb2.GenerateEvent(delta=generation_pb2.Delta(index=index, text=text, token_ids=ids))


def finished(reason: str = "LENGTH", tokens: int = 2, index: int = 0, **rest: Any) -> generation_pb2.GenerateEvent:
    event = generation_pb2.Finished(
        index=index,
        reason=f"FINISH_REASON_{reason}",
        completion_tokens=tokens,
        usage=generation_pb2.Usage(prompt_tokens=5, completion_tokens=tokens, cached_prompt_tokens=1),
        timings=generation_pb2.Timings(queue_seconds=0.25, total_seconds=2.0),
        **rest,
    )
    return generation_pb2.GenerateEvent(finished=event)


class Scripted(inference_pb2_grpc.InferenceServicer, models_pb2_grpc.ModelsServicer):
    """Each call plays the next script, the last one for ever: messages to send, seconds to wait, or a Refusal.

    Attributes:
        requests: what came, in order; `metadata`, `times` and `peers`, what came with each, and from where.
        cancelled: calls that their client left.
        clock: what `handed` is stamped with.
        handed: for each call, when each of its messages was handed to gRPC; the client cannot have it before that.
    """

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.times: list[float | None] = []
        self.peers: list[str] = []
        self.cancelled = 0
        self.clock: Callable[[], float] = time.perf_counter
        self.handed: list[list[float]] = []

    async def _play(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.times.append(context.time_remaining())
        self.peers.append(context.peer())
        self.handed.append(handed := [])
        script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
        try:
            for step in script:
                if isinstance(step, Refusal):
                    await context.abort(step.code, f"the server says {step.code.name}", step.metadata())
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    handed.append(self.clock())
                    yield step
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._play(request, context):
            yield message

    async def GenerateBatch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._play(request, context):
            yield message

    async def _one(self, request: Any, context: Any) -> Any:
        return await anext(self._play(request, context))

    GenerateUnary = Score = Embed = Cancel = _one

    async def GetModel(self, request: Any, context: Any) -> Any:
        model = models_pb2.Model(name=request.name or "fake", vocab_size=100, has_chat_template=True)
        return models_pb2.GetModelResponse(model=model)


@asynccontextmanager
async def served(servicer: Scripted, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    """The port where it answers."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    models_pb2_grpc.add_ModelsServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def beside[T](servicer: Scripted, work: Callable[[int], T], credentials: grpc.ServerCredentials | None = None) -> T:
    """Runs what blocks in a thread of its own, while the server answers."""

    async def whole() -> T:
        async with asyncio.timeout(60), served(servicer, credentials) as port:
            return await asyncio.to_thread(work, port)

    return asyncio.run(whole())


__all__ = ["Refusal", "Scripted", "admitted", "beside", "delta", "finished", "inference_pb2", "served"]
