"""From messages of distaff.v1 to Calls."""

import json
from typing import Any, Literal

from ...backends.errors import InvalidParameterError
from ..front import Call, Chat, InvalidPromptError
from ..front.call import MAX_SECONDS
from ..types import Kind, SamplingParams
from .protos.distaff.v1 import generation_pb2 as pb
from .protos.distaff.v1 import inference_pb2

MAX_ROLE_LEN = 64
_PLAIN = (
    *("min_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "ignore_eos", "n", "seed", "logprobs", "prompt_logprobs", "echo"),
)
_LISTS = ("bad_words", "stop", "stop_token_ids")


type _Prompted = pb.GenerateRequest | inference_pb2.ScoreRequest | inference_pb2.EmbedRequest


def generate_call(request: pb.GenerateRequest) -> Call:
    """
    Raises:
        UsageError: a field that cannot be honoured.
    """
    if request.output.chunk_tokens < 0:
        raise InvalidParameterError("output.chunk_tokens", request.output.chunk_tokens, "a whole number from 0")
    return _call(request, params=sampling(request.sampling))


def score_call(request: inference_pb2.ScoreRequest) -> Call:
    """As generate_call."""
    return _call(request, kind=Kind.SCORE, params=SamplingParams(prompt_logprobs=request.num_top))


def embed_call(request: inference_pb2.EmbedRequest) -> Call:
    """As generate_call."""
    poolings: dict[int, Literal["mean", "last"]] = {
        inference_pb2.POOLING_UNSPECIFIED: "mean",
        inference_pb2.POOLING_MEAN: "mean",
        inference_pb2.POOLING_LAST: "last",
    }
    if request.pooling not in poolings:
        raise InvalidParameterError("pooling", request.pooling, "POOLING_MEAN or POOLING_LAST")
    return _call(request, kind=Kind.EMBED, pooling=poolings[request.pooling])


def sampling(message: pb.SamplingParams) -> SamplingParams:
    """The parameters that are there; the others have their defaults."""
    fields: dict[str, Any] = {name: getattr(message, name) for name in _PLAIN if message.HasField(name)}
    fields |= {name: tuple(getattr(message, name)) for name in _LISTS if getattr(message, name)}
    if message.HasField("max_tokens"):
        fields["max_tokens"] = message.max_tokens or None
    if message.logit_bias:
        fields["logit_bias"] = dict(message.logit_bias)
    if message.HasField("allowed_token_ids"):
        fields["allowed_token_ids"] = tuple(message.allowed_token_ids.ids)
    return SamplingParams(**fields)


def chat_of(message: pb.Chat) -> Chat:
    """
    Raises:
        InvalidPromptError: a message without a role, or JSON that is none.
    """
    variables = _object(message.template_variables_json, "chat.template_variables_json")
    if message.tools_json:
        tools = _json(message.tools_json, "chat.tools_json")
        if not isinstance(tools, list):
            raise InvalidPromptError("chat.tools_json is no JSON array", "chat.tools_json")
        variables["tools"] = tools
    if message.HasField("add_generation_prompt"):
        variables["add_generation_prompt"] = message.add_generation_prompt
    messages: list[dict[str, Any]] = []
    for index, each in enumerate(message.messages):
        where = f"chat.messages[{index}]"
        if not each.role or len(each.role) > MAX_ROLE_LEN:
            raise InvalidPromptError(
                f"{where}.role is empty, or longer than {MAX_ROLE_LEN} characters", f"{where}.role"
            )
        more = _object(each.fields_json, f"{where}.fields_json")
        messages.append({**more, "role": each.role, "content": each.content})
    return Chat(tuple(messages), variables)


def _call(request: _Prompted, **fields: Any) -> Call:
    return Call(
        _prompt(request),
        model=request.model,
        id=request.request_id,
        priority=request.priority,
        queue_timeout=_seconds(request, "queue_timeout_seconds"),
        timeout=_seconds(request, "total_timeout_seconds"),
        cache_salt=request.cache.salt or None,
        use_prefix_cache=not request.cache.bypass,
        **fields,
    )


def _prompt(request: _Prompted) -> str | tuple[int, ...] | Chat:
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return request.text
    if kind == "token_ids":
        return tuple(request.token_ids.ids)
    if kind == "chat":
        return chat_of(request.chat)
    raise InvalidPromptError("the request has no prompt: expected one of text, token_ids and chat", "prompt")


def _seconds(request: _Prompted, name: str) -> float | None:
    """0 means no limit."""
    value = getattr(request, name)
    if not 0 <= value <= MAX_SECONDS:
        raise InvalidParameterError(name, value, f"seconds from 0 to {MAX_SECONDS:g}, 0 for no limit")
    return value or None


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidPromptError(f"{field} is no JSON", field) from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _object(text: str, field: str) -> dict[str, Any]:
    found = _json(text, field) if text else {}
    if not isinstance(found, dict):
        raise InvalidPromptError(f"{field} is no JSON object", field)
    return found
