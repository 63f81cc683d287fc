"""Every service is on the one port, and those that share something share it."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc

from distaff.serving.rpc.profiler import Profiler
from distaff.serving.rpc.protos.distaff.v1 import admin_pb2, admin_pb2_grpc
from distaff.serving.rpc.server import RpcServer
from distaff.serving.rpc.services import services
from distaff.serving.rpc.settings import RpcSettings

from ..served import serving
from .compat import refused, run


def test_services_go_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []

    def add(handlers: Any) -> None:
        added.extend(handler.service_name() for handler in handlers)

    async def test() -> None:
        async with serving() as served:
            server = grpc.aio.server()
            monkeypatch.setattr(server, "add_generic_rpc_handlers", add)
            for name, service in services(served.front, Profiler(None)).items():
                added.clear()
                service.add_to(server)
                assert added == [name]

    run(test())


def test_there_is_one_trace_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins it, and by whichever protocol."""
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: None)
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: None)

    async def test() -> None:
        async with serving() as served:
            server = RpcServer(served.front, RpcSettings(port=0), open_admin=True, profile_dir=tmp_path)
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                vllm, admin = vllm_engine_pb2_grpc.VllmEngineStub(channel), admin_pb2_grpc.AdminStub(channel)
                assert (await vllm.StartProfile(common_pb2.StartProfileRequest())).success
                async with refused("FAILED_PRECONDITION", "stop it first"):
                    await admin.StartProfile(admin_pb2.StartProfileRequest())
                await admin.StopProfile(admin_pb2.StopProfileRequest())
                async with refused("FAILED_PRECONDITION", "no trace"):
                    await vllm.StopProfile(common_pb2.StopProfileRequest())
            await server.stop()

    run(test())
