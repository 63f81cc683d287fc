"""The whole server on its port: what it tells of itself, and what it refuses while it is busy or going down."""

import asyncio
from typing import Any

from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from distaff.serving.front import FrontLimits
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2
from distaff.serving.rpc.settings import RpcSettings

from .compat import run, until
from .native import native, refusal, request


def test_draining_refuses_with_a_time_to_come_back() -> None:
    async def check() -> None:
        async with native() as reached:
            reached.served.programs.step_seconds = 0.005
            call = reached.inference.Generate(request(tokens=120))
            await until(lambda: reached.served.front.load().running == 1)
            draining = asyncio.create_task(reached.served.front.drain(0.1))
            await asyncio.sleep(0)
            ended = await refusal(reached.inference.GenerateUnary(request()))
            assert ended.code == "UNAVAILABLE" and ended.retry_after is not None and ended.retry_after > 0
            await draining
            events: list[Any] = []
            while not events or events[-1].WhichOneof("event") != "finished":
                events.append(await call.read())
            assert events[-1].finished.reason == generation_pb2.FINISH_REASON_DRAINED
            assert events[-1].finished.usage.completion_tokens > 0
            assert (await refusal(call)).code == "ABORTED"

    run(check())


def test_reflection_tells_every_service() -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")

    async def check() -> None:
        async with native() as reached:
            channel: Any = reached.channel
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([asked]))
            answers = [answer async for answer in call]
            names = {service.name for answer in answers for service in answer.list_services_response.service}
            assert {"distaff.v1.Inference", "distaff.v1.Admin", "jetstream_proto.Orchestrator"} <= names
        async with native(settings=RpcSettings(port=0, reflection=False)) as reached:
            channel = reached.channel
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([asked]))
            assert (await refusal(call)).code == "UNIMPLEMENTED"

    run(check())


def test_a_full_queue_says_when_to_come_back() -> None:
    async def check() -> None:
        async with native(limits=FrontLimits(max_queued=1), slots=1) as reached:
            reached.served.programs.step_seconds = 0.005
            running = reached.inference.Generate(request(tokens=100))
            await until(lambda: reached.served.front.load().running == 1)
            waiting = reached.inference.Generate(request(tokens=2))
            await until(lambda: reached.served.front.load().waiting == 1)
            ended = await refusal(reached.inference.GenerateUnary(request()))
            assert ended.code == "RESOURCE_EXHAUSTED" and "waiting calls" in ended.message
            assert ended.retry_after is not None and ended.retry_after > 0
            running.cancel()
            assert len([event async for event in waiting]) == 4

    run(check())
