"""What the router knows of the protocols that pass it: where prompts stand, what goes to every server, how to ask for
load. Of anything else it knows nothing, and passes it all the same."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message
from smg_grpc_proto import vllm_engine_pb2

from ..rpc.protos.distaff.v1 import admin_pb2, admin_pb2_grpc, generation_pb2, inference_pb2
from .prompts import Prompt
from .upstream import Upstream

INFERENCE = "distaff.v1.Inference"
SERVICES = (INFERENCE, "distaff.v1.Tokenization", "distaff.v1.Models", "distaff.v1.Admin")
CANCEL = f"/{INFERENCE}/Cancel"


def _native(message: Any) -> Prompt:
    """The prompt of a request that has the native fields; the salt keeps tenants' prefixes apart, as in a server."""
    kind = message.WhichOneof("prompt")
    if message.cache.bypass or kind is None:
        return Prompt()
    salt = message.cache.salt.encode()
    if kind == "text":
        return Prompt(message.text.encode(), salt)
    if kind == "token_ids":
        return Prompt(_packed(message.token_ids.ids), salt)
    turns = [message.chat.template_variables_json, message.chat.tools_json]
    for turn in message.chat.messages:
        turns += [turn.role, turn.content, turn.fields_json]
    return Prompt("\0".join(turns).encode(), salt)


def _batch(message: inference_pb2.GenerateBatchRequest) -> Prompt:
    """A batch goes to one server as a whole; its first prompt stands for it."""
    return _native(message.items[0].request) if message.items else Prompt()


def _vllm(message: Any) -> Prompt:
    kind = message.WhichOneof("input")
    if kind == "text":
        return Prompt(message.text.encode())
    return Prompt(_packed(message.tokenized.input_ids)) if kind == "tokenized" else Prompt()


def _packed(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


def _reader(kind: type[Message], prompt_of: Callable[[Any], Prompt]) -> Callable[[bytes], Prompt]:
    def read(data: bytes) -> Prompt:
        try:
            return prompt_of(kind.FromString(data))
        except (DecodeError, OverflowError, ValueError):
            return Prompt()  # the server says what is wrong with it

    return read


READERS: Mapping[str, Callable[[bytes], Prompt]] = {
    f"/{INFERENCE}/Generate": _reader(generation_pb2.GenerateRequest, _native),
    f"/{INFERENCE}/GenerateUnary": _reader(generation_pb2.GenerateRequest, _native),
    f"/{INFERENCE}/GenerateBatch": _reader(inference_pb2.GenerateBatchRequest, _batch),
    f"/{INFERENCE}/Score": _reader(inference_pb2.ScoreRequest, _native),
    f"/{INFERENCE}/Embed": _reader(inference_pb2.EmbedRequest, _native),
    "/vllm.grpc.engine.VllmEngine/Generate": _reader(vllm_engine_pb2.GenerateRequest, _vllm),
}
"""How to find the prompt in a request, for each method that has one."""


def _any_cancelled(answers: Sequence[bytes]) -> bytes:
    """A request is cancelled if it was at any server."""
    read = [inference_pb2.CancelResponse.FromString(answer).states for answer in answers]
    return inference_pb2.CancelResponse(states=[min(states) for states in zip(*read, strict=True)]).SerializeToString()


def _first(answers: Sequence[bytes]) -> bytes:
    return answers[0]


EVERYWHERE: Mapping[str, Callable[[Sequence[bytes]], bytes]] = {
    CANCEL: _any_cancelled,
    "/vllm.grpc.engine.VllmEngine/Abort": _first,
}
"""Methods whose calls go to every server, since the router does not remember which one has a request."""


async def ask_load(upstream: Upstream) -> None:
    """Enters in a server's standing what it says of its load."""
    stub: Any = admin_pb2_grpc.AdminStub(upstream.channel)
    before = upstream.standing.in_flight
    answer = await stub.GetLoad(admin_pb2.GetLoadRequest(), metadata=upstream.target.metadata, timeout=5)
    # What has ended since the server counted is ours, and no stranger's.
    ours = max(before, upstream.standing.in_flight)
    upstream.standing.report(answer.waiting, answer.running, ours)
