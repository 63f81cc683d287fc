"""Which services there are."""

from typing import Any, Protocol, runtime_checkable

import grpc

from ..front import Front
from . import inference, jetstream, kserve, models, tokenization, vllm
from .profiler import Profiler


@runtime_checkable
class Service(Protocol):
    """What a server can answer for."""

    def add_to(self, server: grpc.aio.Server) -> Any: ...


def services(front: Front, profiler: Profiler) -> dict[str, Service]:
    """By their full names, those that are served to everybody."""
    return {
        inference.SERVICE: inference.InferenceService(front),
        tokenization.SERVICE: tokenization.TokenizationService(front),
        models.SERVICE: models.ModelsService(front),
        vllm.SERVICE: vllm.VllmEngine(front, profiler),
        kserve.SERVICE: kserve.InferenceService(front),
        jetstream.SERVICE: jetstream.Orchestrator(front),
    }
