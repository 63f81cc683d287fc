"""The service jetstream_proto.Orchestrator: the protocol of JetStream, whose clients it outlived."""

from collections.abc import Iterable

import grpc

from ...backends.errors import InvalidParameterError
from ..front import Call, Delta, Front, State
from ..types import SamplingParams
from .callers import called
from .compatible import refuse, side_by_side
from .failures import Context
from .protos.jetstream import jetstream_pb2 as pb
from .protos.jetstream import jetstream_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Orchestrator"].full_name

REFUSED = {
    "session_cache": "nothing is kept between requests but prefixes, which are found by themselves",
    "lora_adapter_id": "there are no adapters",
}
WITHOUT_EFFECT = {"metadata": "it is the client's own clock, for its own figures"}


class Orchestrator(jetstream_pb2_grpc.OrchestratorServicer):
    """
    Args:
        front: what serves the calls.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        jetstream_pb2_grpc.add_OrchestratorServicer_to_server(self, server)

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> None:
        """Tokens and their text as they come. An answer cut short from outside ends with an error: the messages
        cannot say so."""
        call = await self._call(request)
        async with await self._front.open(called(call, context)) as stream:
            async for event in stream:
                for events in side_by_side([event, *stream.pending()]):
                    deltas = [each for each in events if isinstance(each, Delta)]
                    if deltas:
                        await context.write(_message(deltas, call.params.n))
        if stream.cause is not None:
            raise stream.cause_error()

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Whether requests are taken."""
        return pb.HealthCheckResponse(is_live=self._front.state is State.READY)

    async def _call(self, request: pb.DecodeRequest) -> Call:
        refuse(request, REFUSED)
        match request.WhichOneof("content"):
            case "text_content":
                prompt = request.text_content.text
                if request.has_bos and prompt:
                    prompt = tuple(await self._front.tokenize(prompt, add_special=False))
            case "token_content":
                prompt = tuple(request.token_content.token_ids)
            case _:
                raise InvalidParameterError("content", None, "text_content or token_content")
        n = request.num_samples or 1
        # JetStream draws greedily; several answers would then all be the same.
        params = SamplingParams(max_tokens=request.max_tokens or None, n=n, temperature=0.0 if n == 1 else 1.0)
        return Call(prompt, params, priority=request.priority)


def _message(deltas: Iterable[Delta], num_samples: int) -> pb.DecodeResponse:
    samples = [pb.DecodeResponse.StreamContent.Sample() for _ in range(num_samples)]
    for delta in deltas:
        samples[delta.index].text = delta.text
        samples[delta.index].token_ids.extend(delta.token_ids)
    return pb.DecodeResponse(stream_content=pb.DecodeResponse.StreamContent(samples=samples))
