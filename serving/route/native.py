"""What the router knows of the protocols that pass it: where prompts and names stand, what may be sent twice, what goes
to every server or to none, how to ask for load. Of anything else it knows nothing, and passes it all the same."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message
from smg_grpc_proto import vllm_engine_pb2

from ..rpc.protos.distaff.v1 import admin_pb2, admin_pb2_grpc, generation_pb2, inference_pb2
from .asked import Asked
from .protocol import Protocol
from .upstream import Upstream

INFERENCE = "distaff.v1.Inference"
GENERATE = f"/{INFERENCE}/Generate"
BATCH = f"/{INFERENCE}/GenerateBatch"
SERVICES = (INFERENCE, "distaff.v1.Tokenization", "distaff.v1.Models")
VLLM = "/vllm.grpc.engine.VllmEngine/"
_VLLM_ASKING = ("Generate", "Embed", "HealthCheck", "GetModelInfo", "GetServerInfo", "GetLoads", "GetTokenizer")


def read_native(message: Any) -> Asked:
    """Of a request that has the native fields; the salt keeps tenants' prefixes apart, as in a server."""
    kind = message.WhichOneof("prompt")
    if message.cache.bypass or kind is None:
        return Asked(id=message.request_id)
    if kind == "text":
        beginning = message.text.encode()
    elif kind == "token_ids":
        beginning = _packed(message.token_ids.ids)
    else:
        turns = [message.chat.template_variables_json, message.chat.tools_json]
        for turn in message.chat.messages:
            turns += [turn.role, turn.content, turn.fields_json]
        beginning = "\0".join(turns).encode()
    return Asked(beginning, message.cache.salt.encode(), message.request_id)


def _vllm(message: Any) -> Asked:
    kind = message.WhichOneof("input")
    beginning = b""
    if kind == "text":
        beginning = message.text.encode()
    elif kind == "tokenized":
        beginning = _packed(message.tokenized.input_ids)
    return Asked(beginning, id=message.request_id)


def _packed(ids: Sequence[int]) -> bytes:
    try:
        return array("I", ids).tobytes()
    except OverflowError:  # negative: the server says what is wrong with it
        return b""


def _reader(kind: type[Message], asked: Callable[[Any], Asked]) -> Callable[[bytes], Asked]:
    def read(data: bytes) -> Asked:
        try:
            return asked(kind.FromString(data))
        except (DecodeError, ValueError):
            return Asked()  # the server says what is wrong with it

    return read


READERS: Mapping[str, Callable[[bytes], Asked]] = {
    GENERATE: _reader(generation_pb2.GenerateRequest, read_native),
    f"/{INFERENCE}/GenerateUnary": _reader(generation_pb2.GenerateRequest, read_native),
    f"/{INFERENCE}/Score": _reader(inference_pb2.ScoreRequest, read_native),
    f"/{INFERENCE}/Embed": _reader(inference_pb2.EmbedRequest, read_native),
    f"{VLLM}Generate": _reader(vllm_engine_pb2.GenerateRequest, _vllm),
}


def _any_cancelled(answers: Sequence[bytes]) -> bytes:
    """A request is cancelled if it was at any server."""
    read = [inference_pb2.CancelResponse.FromString(answer).states for answer in answers]
    cancelled, unknown = inference_pb2.CANCEL_STATE_CANCELLED, inference_pb2.CANCEL_STATE_UNKNOWN
    states = [cancelled if cancelled in of_one else unknown for of_one in zip(*read, strict=True)]
    return inference_pb2.CancelResponse(states=states).SerializeToString()


def _first(answers: Sequence[bytes]) -> bytes:
    return answers[0]


PROTOCOL = Protocol(
    readers=READERS,
    everywhere={f"/{INFERENCE}/Cancel": _any_cancelled, f"{VLLM}Abort": _first},
    repeatable=(
        *(f"/{service}/" for service in SERVICES),
        *(f"{VLLM}{name}" for name in _VLLM_ASKING),
        "/inference.GRPCInferenceService/",
        "/jetstream_proto.Orchestrator/",
        "/grpc.reflection.",
    ),
    refused={
        "/distaff.v1.Admin/": "the Admin service is each server's own: ask the server itself",
        "/distaff.v1.BatchJobs/": "batch jobs and their files are each server's own: ask the server itself",
    },
)


async def ask_load(upstream: Upstream) -> None:
    """Enters in a server's standing what it says of its load."""
    stub: Any = admin_pb2_grpc.AdminStub(upstream.channel)
    before = upstream.standing.in_flight
    answer = await stub.GetLoad(admin_pb2.GetLoadRequest(), metadata=upstream.target.metadata, timeout=5)
    # What has ended since the server counted is ours, and no stranger's.
    ours = max(before, upstream.standing.in_flight)
    upstream.standing.report(answer.waiting, answer.running, ours)
    upstream.standing.max_batch = answer.max_batch or upstream.standing.max_batch
