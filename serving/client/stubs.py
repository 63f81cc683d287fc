"""The services of the native protocol, on a channel of either kind."""

from typing import Any

from grpc_health.v1 import health_pb2_grpc

from ..rpc.protos.distaff.v1 import admin_pb2_grpc, inference_pb2_grpc, models_pb2_grpc, tokenization_pb2_grpc


class Stubs:
    """One stub for each service. They take both kinds of channel, which their generated types do not say."""

    def __init__(self, channel: Any) -> None:
        self.inference: Any = inference_pb2_grpc.InferenceStub(channel)
        self.tokenization: Any = tokenization_pb2_grpc.TokenizationStub(channel)
        self.models: Any = models_pb2_grpc.ModelsStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
