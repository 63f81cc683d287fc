"""From the protocol's messages to results."""

import json
from collections.abc import Iterable
from typing import Any

from ..logprobs import TokenLogprob
from ..results import Usage
from ..rpc.protos.distaff.v1 import admin_pb2, generation_pb2, inference_pb2, models_pb2
from .errors import ServerError, typed
from .results import Admitted, Choice, Delta, Embedding, Event, Finished, Load, Model, Result, Score, Timings

type Item = tuple[str, Event | ServerError]
"""What came for one item of a batch, with its key: its events, or what failed."""

_REASON = "FINISH_REASON_"


def event_of(message: generation_pb2.GenerateEvent) -> Event | None:
    """None for a kind of event that is newer than this client."""
    kind = message.WhichOneof("event")
    if kind == "delta":
        delta = message.delta
        return Delta(delta.index, delta.text, tuple(delta.token_ids), _logprobs(delta.logprobs))
    if kind == "admitted":
        admitted = message.admitted
        return Admitted(
            admitted.request_id,
            admitted.queue_seconds,
            admitted.prompt_tokens,
            admitted.cached_prompt_tokens,
            params_of(admitted.effective),
        )
    if kind == "finished":
        finished = message.finished
        return Finished(
            finished.index,
            _reason(finished.reason),
            _stopped_by(finished),
            finished.completion_tokens,
            _usage(finished.usage) if finished.HasField("usage") else None,
            _timings(finished.timings) if finished.HasField("timings") else None,
            _logprobs(finished.prompt_logprobs),
        )
    return None


def item_of(message: inference_pb2.BatchItemEvent) -> Item | None:
    """None for a kind of event that is newer than this client."""
    if message.WhichOneof("outcome") == "error":
        error = message.error
        retry_after = error.retry_after_seconds or None
        return message.key, typed(error.message, code=error.code, field=error.field or None, retry_after=retry_after)
    event = event_of(message.event)
    return None if event is None else (message.key, event)


def result_of(message: generation_pb2.GenerateResult) -> Result:
    return Result(
        message.request_id,
        tuple(
            Choice(
                choice.index,
                choice.text,
                tuple(choice.token_ids),
                _reason(choice.reason),
                _stopped_by(choice),
                _logprobs(choice.logprobs),
            )
            for choice in message.choices
        ),
        _usage(message.usage),
        _timings(message.timings),
        params_of(message.effective),
        _logprobs(message.prompt_logprobs),
    )


def score_of(message: inference_pb2.ScoreResponse) -> Score:
    return Score(
        message.request_id,
        tuple(message.token_ids),
        _logprobs(message.logprobs),
        message.total,
        message.perplexity,
        _usage(message.usage),
        _timings(message.timings),
    )


def embedding_of(message: inference_pb2.EmbedResponse) -> Embedding:
    return Embedding(
        message.request_id,
        tuple(message.embedding),
        tuple(message.token_ids),
        _usage(message.usage),
        _timings(message.timings),
    )


def model_of(message: models_pb2.Model) -> Model:
    return Model(
        message.name,
        message.family,
        message.vocab_size,
        message.context,
        message.dtype,
        message.backend,
        message.layout,
        message.max_batch,
        message.has_tokenizer,
        message.has_chat_template,
        message.embeds,
        message.bos_token_id if message.HasField("bos_token_id") else None,
        tuple(message.eos_token_ids),
        tuple(
            (each.name, json.loads(each.default_json), each.expected, each.description) for each in message.parameters
        ),
    )


def load_of(message: admin_pb2.GetLoadResponse) -> Load:
    return Load(
        message.waiting,
        message.running,
        message.tokens_in_flight,
        message.pages_used,
        message.pages_total,
        message.max_batch,
    )


def params_of(message: generation_pb2.SamplingParams) -> dict[str, Any]:
    """The parameters that a message states, by name."""
    params: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if name == "logit_bias":
            params[name] = dict(value)
        elif name == "allowed_token_ids":
            params[name] = tuple(value.ids)
        else:
            params[name] = tuple(value) if descriptor.is_repeated else value
    return params


def _usage(message: generation_pb2.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_prompt_tokens)


def _timings(message: generation_pb2.Timings) -> Timings:
    return Timings(
        message.queue_seconds,
        message.prefill_seconds,
        message.first_token_seconds,
        message.decode_seconds,
        message.total_seconds,
        message.mean_inter_token_seconds,
    )


def _logprobs(messages: Iterable[generation_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(each.token_id, each.logprob, each.rank, tuple((top.token_id, top.logprob) for top in each.top))
        for each in messages
    )


def _reason(value: int) -> str:
    names = generation_pb2.FinishReason
    if value not in names.values():
        return "unknown"  # newer than this client
    return names.Name(value).removeprefix(_REASON).lower()


def _stopped_by(message: Any) -> str | int | None:
    kind = message.WhichOneof("stopped_by")
    return None if kind is None else getattr(message, kind)
