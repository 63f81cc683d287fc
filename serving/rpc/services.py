"""Which services there are."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import grpc

from ..front import Front
from . import inference, jetstream, kserve, models, tokenization, vllm


@runtime_checkable
class Service(Protocol):
    """What a server can answer for."""

    def add_to(self, server: grpc.aio.Server) -> Any: ...


SERVICES: Mapping[str, Callable[[Front], Service]] = {
    inference.SERVICE: inference.InferenceService,
    tokenization.SERVICE: tokenization.TokenizationService,
    models.SERVICE: models.ModelsService,
    vllm.SERVICE: vllm.VllmEngine,
    kserve.SERVICE: kserve.InferenceService,
    jetstream.SERVICE: jetstream.Orchestrator,
}
"""By their full names, those that are served to everybody."""
