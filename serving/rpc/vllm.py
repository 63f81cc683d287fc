"""The service vllm.grpc.engine.VllmEngine: the protocol of vLLM's gRPC server, which gateways speak."""

import asyncio
import dataclasses
import time

import grpc
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from ...backends.errors import InvalidParameterError
from ..front import Call, Chat, Finished, Front, State
from ..results import Embedding
from .callers import called, current
from .compatible import only_for_admins, refuse
from .failures import Context
from .profiler import Profiler
from .vllm_answer import Answer, input_logprobs
from .vllm_info import loads, model_info, server_info
from .vllm_request import embed_call, generate_call, num_kept
from .vllm_tokenizer import CHUNK_BYTES, TokenizerArchive

SERVICE = pb.DESCRIPTOR.services_by_name["VllmEngine"].full_name

MAX_FLUSH_SECONDS = 3600
_LOOK_SECONDS = 0.02
_WHOLE_TRACE = "a trace holds all that the devices do until StopProfile, in the server's folder"


class VllmEngine(vllm_engine_pb2_grpc.VllmEngineServicer):
    """
    Args:
        front: what serves the calls.
        profiler: makes traces.
    """

    def __init__(self, front: Front, profiler: Profiler | None = None) -> None:
        self._front = front
        self._profiler = profiler or Profiler(None)
        self._archive = TokenizerArchive(front.tokenizer)
        self._started = time.monotonic()
        self._last_request = 0.0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(self, server)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Chunks as tokens come, and one complete message for each choice; without `stream` the latter alone."""
        self._last_request = time.time()
        call = await self._truncated(generate_call(request), request)
        answer = Answer(stream=request.stream, num_top=call.params.logprobs)
        num_top = call.params.prompt_logprobs
        async with await self._front.open(called(call, context)) as stream:
            async for event in stream:
                if answer.of_prompt is None and stream.prompt_logprobs is not None and num_top is not None:
                    answer.of_prompt = input_logprobs(stream.prompt_logprobs, stream.prompt_token_ids, num_top)
                message = answer.add(event)
                if message is not None:
                    await context.write(message)
                if isinstance(event, Finished) and request.stream:
                    for message in answer.completes():
                        await context.write(message)
            for message in answer.completes():
                await context.write(message)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """The mean of the last hidden states of the given tokens."""
        self._last_request = time.time()
        async with await self._front.open(called(embed_call(request), context)) as stream:
            result = await stream.result()
        assert isinstance(result, Embedding)
        vector = result.vector.tolist()
        return pb.EmbedResponse(embedding=vector, prompt_tokens=result.usage.prompt_tokens, embedding_dim=len(vector))

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Whether requests are taken."""
        state = self._front.state
        return pb.HealthCheckResponse(healthy=state is State.READY, message=str(state))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        """Ends requests by their ids; those that have ended, or never were, are no error."""
        for id in request.request_ids:
            self._front.cancel(id, tenant=current.get().tenant)
        return pb.AbortResponse()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return model_info(self._front)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return server_info(self._front, self._last_request, time.monotonic() - self._started)

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        """One entry, for all replicas together; of the sections, "core" is all there is."""
        if request.HasField("dp_rank") and request.dp_rank != 0:
            raise InvalidParameterError("dp_rank", request.dp_rank, "0: all replicas are reported together")
        return loads(self._front)

    async def GetTokenizer(self, request: common_pb2.GetTokenizerRequest, context: Context) -> None:
        """A zip archive of the tokenizer's files in pieces; the last one has the archive's SHA-256."""
        data, digest = await self._archive.read()
        for start in range(0, len(data), CHUNK_BYTES):
            end = start + CHUNK_BYTES
            sha256 = digest if end >= len(data) else ""
            await context.write(common_pb2.GetTokenizerChunk(data=data[start:end], sha256=sha256))

    async def SubscribeKvEvents(self, request: common_pb2.SubscribeKvEventsRequest, context: Context) -> None:
        """Not offered."""
        reason = "KV cache events are not published: poll GetLoads for the load instead"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, reason)

    async def FlushCache(
        self, request: common_pb2.FlushCacheRequest, context: Context
    ) -> common_pb2.FlushCacheResponse:
        """Forgets the prefixes that nobody uses, once nothing runs."""
        only_for_admins("FlushCache")
        if not 0 <= request.timeout_s <= MAX_FLUSH_SECONDS:
            raise InvalidParameterError("timeout_s", request.timeout_s, f"seconds from 0 to {MAX_FLUSH_SECONDS}")
        end = time.monotonic() + request.timeout_s
        while (running := len(self._front.streams())) and time.monotonic() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        if running:
            return common_pb2.FlushCacheResponse(success=False, message=f"{running} requests are under way")
        freed = await self._front.forget_prefixes()
        return common_pb2.FlushCacheResponse(success=True, message=f"{freed} pages are free again")

    async def StartProfile(
        self, request: common_pb2.StartProfileRequest, context: Context
    ) -> common_pb2.ProfileResponse:
        """Begins a trace below the folder that the server was started with, whatever the steps do."""
        only_for_admins("StartProfile")
        refuse(request, dict.fromkeys(request.DESCRIPTOR.fields_by_name, _WHOLE_TRACE))
        self._profiler.start()
        return common_pb2.ProfileResponse(success=True, message="recording")

    async def StopProfile(self, request: common_pb2.StopProfileRequest, context: Context) -> common_pb2.ProfileResponse:
        """Writes the trace."""
        only_for_admins("StopProfile")
        await asyncio.to_thread(self._profiler.stop)
        return common_pb2.ProfileResponse(success=True, message="written")

    async def _truncated(self, call: Call, request: pb.GenerateRequest) -> Call:
        """The call with the end of its prompt alone, if the request says so."""
        count = num_kept(request.sampling_params, self._front.card.context)
        if count is None:
            return call
        prompt = call.prompt
        assert not isinstance(prompt, Chat)
        ids = prompt if isinstance(prompt, tuple) else tuple(await self._front.tokenize(prompt))
        return dataclasses.replace(call, prompt=ids[-count:])
