"""Clients that open a window of no bytes and read nothing, in every protocol that streams."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2

from distaff.serving.front import Front, FrontLimits
from distaff.serving.rpc import inference, jetstream, kserve, vllm
from distaff.serving.rpc.guard import Guard
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2
from distaff.serving.rpc.protos.jetstream import jetstream_pb2
from distaff.serving.rpc.protos.kserve import inference_pb2

from .. import http2
from ..served import serving
from .compat import Service, run, until


def _tensor(name: str, datatype: str, **contents: Any) -> Any:
    values = inference_pb2.InferTensorContents(**contents)
    return inference_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=[1], contents=values)


ASKED: dict[str, tuple[Callable[[Front], Service], Any]] = {
    f"/{inference.SERVICE}/Generate": (inference.InferenceService, generation_pb2.GenerateRequest(text="abc")),
    f"/{vllm.SERVICE}/Generate": (vllm.VllmEngine, vllm_engine_pb2.GenerateRequest(text="abc", stream=True)),
    f"/{jetstream.SERVICE}/Decode": (
        jetstream.Orchestrator,
        jetstream_pb2.DecodeRequest(text_content=jetstream_pb2.DecodeRequest.TextContent(text="abc")),
    ),
    f"/{kserve.SERVICE}/ModelStreamInfer": (
        kserve.InferenceService,
        inference_pb2.ModelInferRequest(
            inputs=[
                _tensor("text_input", "BYTES", bytes_contents=[b"abc"]),
                _tensor("stream", "BOOL", bool_contents=[True]),
            ]
        ),
    ),
}


@pytest.mark.parametrize("method", ASKED)
def test_they_hold_their_rpc_alone_and_go_unnoticed(method: str, caplog: pytest.LogCaptureFixture) -> None:
    make, message = ASKED[method]
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with serving(limits=FrontLimits(stall_seconds=0.1)) as served:
            guard = Guard()
            server = grpc.aio.server(interceptors=[guard])
            make(served.front).add_to(server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            with http2.Connection(port) as connection:
                connection.send(http2.settings(window=0) + http2.unary(method, message.SerializeToString()))
                await until(lambda: served.front.counters.opened)
                await served.check_empty()
                await asyncio.sleep(0.2)
                assert guard.running == 1, "it waits, and counts among those that may be under way"
            await until(lambda: guard.running == 0)
            await asyncio.sleep(0.05)
            await server.stop(0)

    run(test())
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
