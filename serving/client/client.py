"""A client that blocks."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from ..rpc.protos.distaff.v1 import admin_pb2, inference_pb2, models_pb2, tokenization_pb2
from . import reading
from .attempts import Attempts
from .collector import Collector
from .errors import ServerError, error_of
from .requests import Prompt, batch_request, chat_of, embed_request, generate_request, score_request
from .results import Embedding, Event, Load, Model, Result, Score
from .retry import RetryPolicy
from .stream import EventStream
from .stubs import Stubs
from .target import Target

CANCELLED = inference_pb2.CANCEL_STATE_CANCELLED


class Client:
    """Asks a server (`distaff serve`) over gRPC. Close it, or use it as a context manager; threads may share it.

        with Client("127.0.0.1:50051") as client:
            print(client.generate("Once upon a time", max_tokens=20).text)

    Prompts are texts, token ids, or messages ({"role", "content"} each). Every method takes `timeout`, in seconds.
    Those that ask the engine also take `request_id`, `model`, `priority` (higher runs first), `queue_timeout`,
    `total_timeout`, `cache_salt`, `use_prefix_cache`, and with messages `tools`, `template_variables` and
    `add_generation_prompt`. Whatever a server refuses is raised as a ServerError.

    Args:
        target: HOST:PORT, grpcs://HOST:PORT for TLS, or unix:PATH.
        token: a bearer token.
        ca: a file of certificates to trust instead of the system's; asks for TLS.
        certificate, key: files with a certificate of one's own, for mutual TLS.
        server_name: what the server's certificate calls it, if not its host.
        timeout: seconds for each call that states no other, None for any.
        retry: what is tried again before anything has come.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.target = Target(target, token, ca, certificate, key, server_name)
        self._timeout, self._retry = timeout, retry or RetryPolicy()
        self._channel = self.target.channel()
        self._stubs = Stubs(self._channel)

    def close(self) -> None:
        """Ends calls that run. Closing again does nothing."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inference

    def generate(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Result:
        """The whole answer. Options are the sampling parameters (docs/sampling.md) besides those of every request."""
        request = generate_request(prompt, options)
        return reading.result_of(self._ask(self._stubs.inference.GenerateUnary, request, timeout))

    def generate_stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> EventStream:
        """The answer as it comes; `chunk_tokens`, `omit_text` and `omit_token_ids` say how it is cut."""
        request = generate_request(prompt, options)

        def call(seconds: float | None) -> Any:
            return self._stubs.inference.Generate(request, timeout=seconds, metadata=self.target.metadata)

        return EventStream(call, self._attempts(timeout), self.target.place)

    def batch(
        self, prompts: Sequence[Prompt], *, timeout: float | None = None, **options: Any
    ) -> list[Result | ServerError]:
        """The answers to many prompts in one call, in their order; one that failed is its error."""
        collectors = [Collector() for _ in prompts]
        errors: dict[int, ServerError] = {}
        items = [(str(number), prompt, options) for number, prompt in enumerate(prompts)]
        for key, event in self.batch_stream(items, timeout=timeout):
            if isinstance(event, ServerError):
                errors[int(key)] = event
            else:
                collectors[int(key)].add(event)
        return [errors.get(number) or each.result() for number, each in enumerate(collectors)]

    def batch_stream(
        self, items: Sequence[tuple[str, Prompt, Mapping[str, Any]]], *, timeout: float | None = None
    ) -> Iterator[tuple[str, Event | ServerError]]:
        """Many prompts in one call, (key, prompt, options) each; their events as they come, with the item's key."""
        request, attempts, begun = batch_request(items), self._attempts(timeout), False
        while True:
            try:
                for message in self._stubs.inference.GenerateBatch(
                    request, timeout=attempts.begin(), metadata=self.target.metadata
                ):
                    begun = True
                    event = reading.item_of(message)
                    if event is not None:
                        yield message.key, event
                return
            except grpc.RpcError as failure:
                if begun:
                    raise error_of(failure, self.target.place) from failure
                time.sleep(attempts.wait_after(failure))

    def score(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> Score:
        """How likely the model finds a text; `num_top` asks for the likeliest tokens at each place too."""
        return reading.score_of(self._ask(self._stubs.inference.Score, score_request(prompt, options), timeout))

    def embed(
        self, prompt: Prompt, *, pooling: str = "mean", timeout: float | None = None, **options: Any
    ) -> Embedding:
        """A text as a vector: the mean of its last hidden states, or the "last" one."""
        request = embed_request(prompt, pooling, options)
        return reading.embedding_of(self._ask(self._stubs.inference.Embed, request, timeout))

    def cancel(self, *request_ids: str, timeout: float | None = None) -> dict[str, bool]:
        """Ends requests; whether each was running."""
        request = inference_pb2.CancelRequest(request_ids=request_ids)
        states = self._ask(self._stubs.inference.Cancel, request, timeout).states
        return {name: state == CANCELLED for name, state in zip(request_ids, states, strict=True)}

    # Tokens

    def tokenize(self, text: str, *, add_special: bool = True, timeout: float | None = None) -> list[int]:
        """The token ids of a text."""
        request = tokenization_pb2.TokenizeRequest(text=text, add_special_tokens=add_special)
        return list(self._ask(self._stubs.tokenization.Tokenize, request, timeout).token_ids)

    def detokenize(self, ids: Sequence[int], *, timeout: float | None = None) -> str:
        """The text of token ids."""
        request = tokenization_pb2.DetokenizeRequest(token_ids=ids)
        return self._ask(self._stubs.tokenization.Detokenize, request, timeout).text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Any
    ) -> tuple[str, list[int]]:
        """A conversation as the model reads it: its text and token ids."""
        request = tokenization_pb2.ApplyChatTemplateRequest(chat=chat_of(messages, options))
        answer = self._ask(self._stubs.tokenization.ApplyChatTemplate, request, timeout)
        return answer.text, list(answer.token_ids)

    # The server

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """What is served."""
        answer = self._ask(self._stubs.models.ListModels, models_pb2.ListModelsRequest(), timeout)
        return [reading.model_of(message) for message in answer.models]

    def model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """The model of this name; "" is the one that is served."""
        request = models_pb2.GetModelRequest(name=name)
        return reading.model_of(self._ask(self._stubs.models.GetModel, request, timeout).model)

    def healthy(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server takes requests."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self._ask(self._stubs.health.Check, request, timeout)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def load(self, *, timeout: float | None = None) -> Load:
        """How busy the server is (an admin call)."""
        return reading.load_of(self._ask(self._stubs.admin.GetLoad, admin_pb2.GetLoadRequest(), timeout))

    def drain(self, grace: float | None = None, *, timeout: float | None = None) -> None:
        """Shuts the server down, which gives running requests `grace` seconds (an admin call)."""
        self._ask(self._stubs.admin.Drain, admin_pb2.DrainRequest(grace_seconds=grace), timeout)

    def flush_prefix_cache(self, *, timeout: float | None = None) -> int:
        """Has the server forget prompts; how many pages that gave back (an admin call)."""
        request = admin_pb2.FlushPrefixCacheRequest()
        return self._ask(self._stubs.admin.FlushPrefixCache, request, timeout).pages_freed

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self._retry, self._timeout if timeout is None else timeout, self.target.place)

    def _ask(self, method: Any, request: Any, timeout: float | None) -> Any:
        """One request, one answer."""
        attempts = self._attempts(timeout)
        while True:
            try:
                return method(request, timeout=attempts.begin(), metadata=self.target.metadata)
            except grpc.RpcError as failure:
                time.sleep(attempts.wait_after(failure))
