"""The service vllm.grpc.engine.VllmEngine: the protocol of vLLM's gRPC server, which gateways speak."""

import dataclasses
import time
from collections.abc import AsyncIterator

import grpc
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from ...backends.errors import InvalidParameterError
from ..front import Call, Chat, Finished, Front, State
from ..results import Completion, Embedding
from .compatible import Context, answering, called
from .vllm_answer import Answer, input_logprobs
from .vllm_info import loads, model_info, server_info
from .vllm_request import embed_call, generate_call, num_kept
from .vllm_tokenizer import CHUNK_BYTES, TokenizerArchive

SERVICE = pb.DESCRIPTOR.services_by_name["VllmEngine"].full_name


class VllmEngine(vllm_engine_pb2_grpc.VllmEngineServicer):
    """
    Args:
        front: what serves the calls.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._archive = TokenizerArchive(front.tokenizer)
        self._started = time.monotonic()
        self._last_request = 0.0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(self, server)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Chunks as tokens come, and one complete message for each choice; without `stream` the latter alone."""
        self._last_request = time.time()
        async with answering(context):
            call = called(await self._truncated(generate_call(request), request), context)
            answer = Answer(stream=request.stream, num_top=call.params.logprobs)
            wants_prompt = call.params.prompt_logprobs is not None
            async with await self._front.open(call) as stream:
                async for event in stream:
                    message = answer.add(event)
                    if message is not None:
                        yield message
                    # What the prompt's tokens are worth is known for certain when all has ended.
                    if isinstance(event, Finished) and request.stream and not wants_prompt:
                        for message in answer.completes(None):
                            yield message
                of_prompt = None
                if wants_prompt:
                    result = await stream.result()
                    assert isinstance(result, Completion)
                    of_prompt = _of_prompt(result, call.params.prompt_logprobs or 0)
                for message in answer.completes(of_prompt):
                    yield message

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """The mean of the last hidden states of the given tokens."""
        self._last_request = time.time()
        async with answering(context):
            async with await self._front.open(called(embed_call(request), context)) as stream:
                result = await stream.result()
            assert isinstance(result, Embedding)
            vector = result.vector.tolist()
            return pb.EmbedResponse(
                embedding=vector, prompt_tokens=result.usage.prompt_tokens, embedding_dim=len(vector)
            )

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Whether requests are taken."""
        state = self._front.state
        return pb.HealthCheckResponse(healthy=state is State.READY, message=str(state))

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        """Ends requests by their ids; those that have ended, or never were, are no error."""
        for id in request.request_ids:
            self._front.cancel(id)
        return pb.AbortResponse()

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        return model_info(self._front)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return server_info(self._front, self._last_request, time.monotonic() - self._started)

    async def GetLoads(self, request: pb.GetLoadsRequest, context: Context) -> pb.GetLoadsResponse:
        """One entry, for all replicas together; of the sections, "core" is all there is."""
        async with answering(context):
            if request.HasField("dp_rank") and request.dp_rank != 0:
                raise InvalidParameterError("dp_rank", request.dp_rank, "0: all replicas are reported together")
            return loads(self._front)

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """A zip archive of the tokenizer's files in pieces; the last one has the archive's SHA-256."""
        async with answering(context):
            data, digest = await self._archive.read()
            for start in range(0, len(data), CHUNK_BYTES):
                end = start + CHUNK_BYTES
                yield common_pb2.GetTokenizerChunk(data=data[start:end], sha256=digest if end >= len(data) else "")

    async def SubscribeKvEvents(
        self, request: common_pb2.SubscribeKvEventsRequest, context: Context
    ) -> AsyncIterator[common_pb2.KvEventBatch]:
        """Not offered: clients find the load by GetLoads."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "KV cache events are not published: poll GetLoads for the load instead"
        )
        yield common_pb2.KvEventBatch()  # makes this a stream, and is never reached

    async def _truncated(self, call: Call, request: pb.GenerateRequest) -> Call:
        """The call with the end of its prompt alone, if the request says so."""
        count = num_kept(request.sampling_params, self._front.card.context)
        if count is None:
            return call
        prompt = call.prompt
        assert not isinstance(prompt, Chat)
        ids = prompt if isinstance(prompt, tuple) else tuple(await self._front.tokenize(prompt))
        return dataclasses.replace(call, prompt=ids[-count:])


def _of_prompt(result: Completion, num_top: int) -> pb.InputLogProbs:
    return input_logprobs(result.prompt_logprobs or (), result.prompt_token_ids, num_top)
