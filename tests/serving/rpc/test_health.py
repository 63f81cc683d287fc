"""Health as probes and balancers see it."""

from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from distaff.serving.front import State

from .compat import run
from .native import EOF, native, refusal


def test_health_follows_the_state_of_the_front() -> None:
    async def check() -> None:
        async with native() as reached:
            health: Any = health_pb2_grpc.HealthStub(reached.channel)
            serving, not_serving, unknown = 1, 2, 3
            names = ["", "distaff.v1.Inference", "vllm.grpc.engine.VllmEngine", "inference.GRPCInferenceService"]
            for name in names:
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
            assert (await refusal(health.Check(health_pb2.HealthCheckRequest(service="nothing")))).code == "NOT_FOUND"
            watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
            strange = health.Watch(health_pb2.HealthCheckRequest(service="nothing"))
            assert [(await watch.read()).status for watch in watches] == [serving] * 4
            assert (await strange.read()).status == unknown
            reached.served.front._enter(State.FAILED)
            assert [(await watch.read()).status for watch in watches] == [not_serving] * 4
            reached.served.front._enter(State.READY)
            assert [(await watch.read()).status for watch in watches] == [serving] * 4
            watches[0].cancel()
            reached.server.health.leave()
            assert [(await watch.read()).status for watch in watches[1:]] == [not_serving] * 3
            assert [await watch.read() for watch in watches[1:]] == [EOF] * 3

    run(check())
