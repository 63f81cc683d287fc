"""What each call sends, and what its answer means. Client and AsyncClient add how to wait."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpc_health.v1 import health_pb2

from ..rpc.protos.distaff.v1 import admin_pb2, inference_pb2, models_pb2, tokenization_pb2
from . import reading
from .requests import Prompt, batch_request, chat_of, embed_request, generate_request, score_request
from .results import Embedding, Event, Load, Model, Result, Score
from .stubs import Stubs


@dataclass(frozen=True)
class Call[T]:
    """One request of a method.

    Attributes:
        method: picks it from the stubs.
        read: makes an answer of a message; of a stream's messages some are no answer (None).
    """

    method: Callable[[Stubs], Any]
    request: Any
    read: Callable[[Any], T]


def generate(prompt: Prompt, options: Mapping[str, Any]) -> Call[Result]:
    return Call(lambda stubs: stubs.inference.GenerateUnary, generate_request(prompt, options), reading.result_of)


def stream(prompt: Prompt, options: Mapping[str, Any]) -> Call[Event | None]:
    return Call(lambda stubs: stubs.inference.Generate, generate_request(prompt, options), reading.event_of)


def batch(items: Iterable[tuple[str, Prompt, Mapping[str, Any]]]) -> Call[reading.Item | None]:
    return Call(lambda stubs: stubs.inference.GenerateBatch, batch_request(items), reading.item_of)


def score(prompt: Prompt, options: Mapping[str, Any]) -> Call[Score]:
    return Call(lambda stubs: stubs.inference.Score, score_request(prompt, options), reading.score_of)


def embed(prompt: Prompt, pooling: str, options: Mapping[str, Any]) -> Call[Embedding]:
    return Call(lambda stubs: stubs.inference.Embed, embed_request(prompt, pooling, options), reading.embedding_of)


def cancel(names: Sequence[str]) -> Call[dict[str, bool]]:
    def read(answer: inference_pb2.CancelResponse) -> dict[str, bool]:
        ended = [state == inference_pb2.CANCEL_STATE_CANCELLED for state in answer.states]
        return dict(zip(names, ended, strict=True))

    return Call(lambda stubs: stubs.inference.Cancel, inference_pb2.CancelRequest(request_ids=names), read)


def tokenize(text: str, add_special: bool) -> Call[list[int]]:
    request = tokenization_pb2.TokenizeRequest(text=text, add_special_tokens=add_special)
    return Call(lambda stubs: stubs.tokenization.Tokenize, request, lambda answer: list(answer.token_ids))


def detokenize(ids: Sequence[int]) -> Call[str]:
    request = tokenization_pb2.DetokenizeRequest(token_ids=ids)
    return Call(lambda stubs: stubs.tokenization.Detokenize, request, lambda answer: answer.text)


def apply_chat_template(
    messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> Call[tuple[str, list[int]]]:
    request = tokenization_pb2.ApplyChatTemplateRequest(chat=chat_of(messages, options))
    return Call(
        lambda stubs: stubs.tokenization.ApplyChatTemplate,
        request,
        lambda answer: (answer.text, list(answer.token_ids)),
    )


def models() -> Call[list[Model]]:
    return Call(
        lambda stubs: stubs.models.ListModels,
        models_pb2.ListModelsRequest(),
        lambda answer: [reading.model_of(message) for message in answer.models],
    )


def model(name: str) -> Call[Model]:
    request = models_pb2.GetModelRequest(name=name)
    return Call(lambda stubs: stubs.models.GetModel, request, lambda answer: reading.model_of(answer.model))


def healthy(service: str) -> Call[bool]:
    request = health_pb2.HealthCheckRequest(service=service)
    serving = health_pb2.HealthCheckResponse.SERVING
    return Call(lambda stubs: stubs.health.Check, request, lambda answer: answer.status == serving)


def load() -> Call[Load]:
    return Call(lambda stubs: stubs.admin.GetLoad, admin_pb2.GetLoadRequest(), reading.load_of)


def drain(grace: float | None) -> Call[None]:
    return Call(lambda stubs: stubs.admin.Drain, admin_pb2.DrainRequest(grace_seconds=grace), lambda _: None)


def flush_prefix_cache() -> Call[int]:
    request = admin_pb2.FlushPrefixCacheRequest()
    return Call(lambda stubs: stubs.admin.FlushPrefixCache, request, lambda answer: answer.pages_freed)
