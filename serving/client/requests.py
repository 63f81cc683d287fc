"""From a caller's words to the protocol's messages.

Which values are accepted is the server's to say; here only what the protocol cannot carry is refused.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...backends.errors import InvalidParameterError, UsageError
from ..rpc.protos.distaff.v1 import generation_pb2, inference_pb2

type Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, token ids, or the messages of a conversation: {"role": ..., "content": ...} each."""

SAMPLING = tuple(generation_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
"""Names of sampling parameters."""

_LISTS = ("bad_words", "stop", "stop_token_ids")
_TEMPLATE = ("tools", "template_variables", "add_generation_prompt")
_COMMON = ("request_id", "model", "priority", "queue_timeout", "total_timeout", "cache_salt", "use_prefix_cache")
_OUTPUT = ("omit_text", "omit_token_ids", "chunk_tokens")
_POOLING = {"mean": inference_pb2.POOLING_MEAN, "last": inference_pb2.POOLING_LAST}
_FIELDS = {"queue_timeout": "queue_timeout_seconds", "total_timeout": "total_timeout_seconds"}


def generate_request(prompt: Prompt, options: Mapping[str, Any]) -> generation_pb2.GenerateRequest:
    """A generation.

    Raises:
        InvalidParameterError, UsageError: an option that there is not, or that the protocol cannot carry.
    """
    _check(options, (*SAMPLING, *_OUTPUT, *_TEMPLATE, *_COMMON))
    request = generation_pb2.GenerateRequest()
    _fill(request, prompt, options)
    for name in SAMPLING:
        if name in options:
            _set_sampling(request.sampling, name, options[name])
    for name in _OUTPUT:
        if name in options:
            _set(request.output, name, options[name])
    return request


def batch_request(
    items: Iterable[tuple[str, Prompt, Mapping[str, Any]]],
) -> inference_pb2.GenerateBatchRequest:
    """Generations with a key each."""
    return inference_pb2.GenerateBatchRequest(
        items=[
            inference_pb2.BatchItem(key=key, request=generate_request(prompt, options))
            for key, prompt, options in items
        ]
    )


def score_request(prompt: Prompt, options: Mapping[str, Any]) -> inference_pb2.ScoreRequest:
    """Log-probabilities of a text; `num_top` asks for those of the most likely tokens too."""
    _check(options, ("num_top", *_TEMPLATE, *_COMMON))
    request = inference_pb2.ScoreRequest()
    _fill(request, prompt, options)
    if "num_top" in options:
        _set(request, "num_top", options["num_top"])
    return request


def embed_request(prompt: Prompt, pooling: str, options: Mapping[str, Any]) -> inference_pb2.EmbedRequest:
    """A text as a vector."""
    _check(options, (*_TEMPLATE, *_COMMON))
    request = inference_pb2.EmbedRequest()
    _fill(request, prompt, options)
    if pooling not in _POOLING:
        raise InvalidParameterError("pooling", pooling, "mean or last")
    request.pooling = _POOLING[pooling]
    return request


def chat_of(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> generation_pb2.Chat:
    """A conversation, with what else the chat template reads."""
    chat = generation_pb2.Chat()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidParameterError(where, message, 'an object with a "role" and a "content"')
        content, rest = message.get("content"), {k: v for k, v in message.items() if k not in ("role", "content")}
        if content is not None and not isinstance(content, str):
            raise InvalidParameterError(f"{where}.content", content, "a text")
        fields_json = _json(where, rest) if rest else ""
        chat.messages.add(role=message["role"], content=content or "", fields_json=fields_json)
    if options.get("tools") is not None:
        chat.tools_json = _json("tools", options["tools"])
    if options.get("template_variables") is not None:
        chat.template_variables_json = _json("template_variables", options["template_variables"])
    if "add_generation_prompt" in options:
        chat.add_generation_prompt = options["add_generation_prompt"]
    return chat


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is a conversation."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _fill(request: Any, prompt: Prompt, options: Mapping[str, Any]) -> None:
    """What all requests for the engine have."""
    if isinstance(prompt, str):
        _set(request, "text", prompt, shown="prompt")
    elif is_chat(prompt):
        request.chat.CopyFrom(chat_of(prompt, options))  # pyright: ignore[reportArgumentType]  # is_chat has looked
    else:
        _set(request.token_ids, "ids", prompt, shown="prompt")
        request.token_ids.SetInParent()
    for name in _COMMON:
        value = options.get(name)
        if value is None:
            continue
        if name == "cache_salt":
            _set(request.cache, "salt", value, shown=name)
        elif name == "use_prefix_cache":
            _set(request.cache, "bypass", not value, shown=name)
        else:
            _set(request, _FIELDS.get(name, name), value, shown=name)


def _set_sampling(params: generation_pb2.SamplingParams, name: str, value: Any) -> None:
    if name == "max_tokens" and value is None:
        value = 0  # to the end of the context
    if value is None:
        return
    if name == "allowed_token_ids":
        params.allowed_token_ids.SetInParent()
        _set(params.allowed_token_ids, "ids", value, shown=name)
    elif name == "logit_bias":
        try:
            params.logit_bias.update(value)
        except (TypeError, ValueError, AttributeError):
            raise InvalidParameterError(name, value, "a mapping from token ids to numbers") from None
    else:
        _set(params, name, [value] if name in _LISTS and isinstance(value, str | int) else value)


def _set(message: Any, field: str, value: Any, *, shown: str | None = None) -> None:
    """Sets a field, whether it holds one value or several."""
    try:
        if message.DESCRIPTOR.fields_by_name[field].is_repeated:
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)
    except (TypeError, ValueError) as error:
        given = value if len(repr(value)) < 80 else f"{type(value).__name__} of {len(value)}"
        reason = str(error).splitlines()[0] if str(error) else "another type"
        raise InvalidParameterError(shown or field, given, f"a value that the protocol can carry ({reason})") from None


def _check(options: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(f"unknown option {unknown[0]}; there are {', '.join(sorted(known))}")


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(name, value, f"what JSON can carry ({error})") from None
