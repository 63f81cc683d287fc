"""The service inference.GRPCInferenceService: the Open Inference Protocol (KServe v2) with Triton's additions."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from importlib.metadata import version

import grpc
from google.protobuf.message import Message

from ...backends.errors import InvalidParameterError
from ..front import Front, State
from .callers import called
from .compatible import side_by_side
from .failures import Context, told
from .kserve_answer import Answer
from .kserve_model import PLATFORM, Statistics, configuration, metadata
from .kserve_request import VERSION, check_version, read_request
from .kserve_stream import Send, serve_stream
from .protos.kserve import inference_pb2 as pb
from .protos.kserve import inference_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
EXTENSIONS = ("model_configuration", "model_repository", "parameters", "schedule_policy", "statistics")

_ONE_MODEL = "this server serves one model, which is loaded when it starts"
_NO_SHARED_MEMORY = "values travel in the messages: this server reads no memory of its clients"
_NO_SETTINGS = "tracing and logs are set when the server starts"
UNIMPLEMENTED = {
    "RepositoryModelLoad": _ONE_MODEL,
    "RepositoryModelUnload": _ONE_MODEL,
    "SystemSharedMemoryStatus": _NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": _NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": _NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": _NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _NO_SHARED_MEMORY,
    "TraceSetting": _NO_SETTINGS,
    "LogSettings": _NO_SETTINGS,
}


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """
    Args:
        front: what serves the calls.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._statistics = Statistics()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)

    # The server and its model

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether it is worth keeping: not after the engine has failed."""
        return pb.ServerLiveResponse(live=self._front.state not in (State.FAILED, State.CLOSED))

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether requests are taken."""
        return pb.ServerReadyResponse(ready=self._front.state is State.READY)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether requests for this model are taken."""
        self._name(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._front.state is State.READY)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=PLATFORM, version=version("distaff"), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        return metadata(self._name(request.name, request.version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        name = self._name(request.name, request.version)
        return pb.ModelConfigResponse(config=configuration(name, self._front.card))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Of the requests that came through this service since the server started."""
        name = self._name(request.name, request.version)
        return pb.ModelStatisticsResponse(model_stats=[self._statistics.message(name)])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """The model by each of its names."""
        ready = self._front.state is State.READY
        models = [
            pb.RepositoryIndexResponse.ModelIndex(
                name=name,
                version=VERSION,
                state="READY" if ready else "UNAVAILABLE",
                reason="" if ready else str(self._front.state),
            )
            for name in self._front.names
        ]
        return pb.RepositoryIndexResponse(models=models if ready or not request.ready else [])

    # Inference

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One answer in one message."""
        async with aclosing(self._messages(request, context, streams=False)) as messages:
            return await anext(messages)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Many requests, each answered by messages with its id; a request that fails leaves the others alone."""

        async def serve(request: pb.ModelInferRequest, send: Send) -> None:
            try:
                async with aclosing(self._messages(request, context, streams=True)) as messages:
                    async for message in messages:
                        await send(pb.ModelStreamInferResponse(infer_response=message))
            except Exception as error:
                failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                failed.parameters["triton_final_response"].bool_param = True
                await send(pb.ModelStreamInferResponse(error_message=told(error).message, infer_response=failed))

        async with aclosing(serve_stream(request_iterator, serve)) as messages:
            async for message in messages:
                yield message

    async def _messages(
        self, request: pb.ModelInferRequest, context: Context, *, streams: bool
    ) -> AsyncGenerator[pb.ModelInferResponse]:
        """What answers a request. An answer cut short from outside ends with an error."""
        started, answered = time.monotonic(), False

        def passed() -> float:
            return time.monotonic() - started

        try:
            asked = read_request(request)
            if asked.stream and not streams:
                raise InvalidParameterError("stream", True, "False: several messages come by ModelStreamInfer")
            answer = Answer(asked, self._spell)
            async with await self._front.open(called(asked.call, context)) as stream:
                opened = passed()
                async for event in stream:
                    for events in side_by_side([event, *stream.pending()]):
                        message = answer.add(events)
                        if message is not None:
                            yield message
            if stream.cause is not None:
                raise stream.cause_error()
            answered = True
            self._statistics.succeeded(stream.timings, opened, passed())
            yield answer.last(stream.prompt_token_ids)
        finally:
            if not answered:
                self._statistics.failed(passed())

    def _spell(self, token: int) -> str:
        """The text of a token, "" where the model has no tokenizer."""
        tokenizer = self._front.tokenizer
        return "" if tokenizer is None else tokenizer.decode([token], skip_special=False)

    def _name(self, name: str, model_version: str) -> str:
        """The name of the model that is asked for; "" is the one served."""
        check_version(model_version)
        self._front.check_model(name)
        return name or self._front.names[0]


def _refusing(method: str, reason: str) -> Callable[[InferenceService, Message, Context], Awaitable[None]]:
    async def refuse(self: InferenceService, request: Message, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method}: {reason}")

    return refuse


for _method, _reason in UNIMPLEMENTED.items():
    setattr(InferenceService, _method, _refusing(_method, _reason))
