"""Load reports: the header's two forms, and bytes that protobuf reads as the message of the xDS API."""

import asyncio
import base64
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from distaff.serving.rpc.protos.distaff.v1 import generation_pb2
from distaff.serving.telemetry.orca import REQUEST_HEADER, TRAILER, LoadReport

from ..http.asked import asking
from ..rpc.native import native

REPORT = LoadReport(1.25, {"kv_cache_utilization": 0.5, "max_token_capacity": 1024.0, "zero": 0.0})


def orca_message() -> Any:
    """xds/data/orca/v3/orca_load_report.proto, as far as it is used here."""
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="xds.data.orca.v3", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    double, repeated = (
        descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
        descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
    )
    for name, number in (("cpu_utilization", 1), ("mem_utilization", 2), ("rps_fractional", 6), ("eps", 7)):
        message.field.add(name=name, number=number, type=double, label=1)
    message.field.add(name="application_utilization", number=9, type=double, label=1)
    entry = message.nested_type.add(name="NamedMetricsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=1)
    entry.field.add(name="value", number=2, type=double, label=1)
    kind = ".xds.data.orca.v3.OrcaLoadReport.NamedMetricsEntry"
    message.field.add(name="named_metrics", number=8, type=11, type_name=kind, label=repeated)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport"))


def test_the_bytes_are_the_xds_message() -> None:
    read = orca_message().FromString(REPORT.to_bytes())
    assert read.application_utilization == 1.25
    assert dict(read.named_metrics) == REPORT.named
    assert read.SerializeToString(deterministic=True) != b"" and read.ByteSize() == len(REPORT.to_bytes())


def test_the_header_has_two_forms_and_no_third() -> None:
    text = REPORT.header("text")
    assert text is not None and text.startswith("TEXT ")
    pairs = dict(part.split("=") for part in text.removeprefix("TEXT ").split(", "))
    assert pairs["application_utilization"] == "1.25" and pairs["named_metrics.kv_cache_utilization"] == "0.5"
    told = REPORT.header("JSON")
    assert told is not None
    assert json.loads(told.removeprefix("JSON ")) == {"application_utilization": 1.25, "named_metrics": REPORT.named}
    assert REPORT.header("xml") is None


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_for_it_is_told(stream: bool) -> None:
    async def check() -> None:
        async with asking() as (_, client):
            body = {"prompt": "a", "max_tokens": 2, "stream": stream}
            plain = await client.post("/v1/completions", json=body)
            assert "endpoint-load-metrics" not in plain.headers
            asked = await client.post("/v1/completions", json=body, headers={"endpoint-load-metrics-format": "json"})
            value = json.loads(asked.headers["endpoint-load-metrics"].removeprefix("JSON "))
            assert value["named_metrics"]["max_token_capacity"] == 256 * 4
            assert 0 <= value["named_metrics"]["kv_cache_utilization"] <= 1
            assert value["application_utilization"] in (0, 1 / 8)

    asyncio.run(asyncio.wait_for(check(), 20))


@pytest.mark.skipif(shutil.which("curl") is None, reason="grpc's own client hides this trailer; curl shows it")
def test_rpcs_that_ask_for_it_end_with_it(tmp_path: Path) -> None:
    request = generation_pb2.GenerateRequest(text="a")
    request.sampling.max_tokens = 2
    message = request.SerializeToString()
    (tmp_path / "request").write_bytes(b"\0" + struct.pack(">I", len(message)) + message)

    async def trailers(port: int, method: str, *headers: str) -> dict[str, str]:
        """What curl is told behind the answer of an RPC."""
        process = await asyncio.create_subprocess_exec(
            *("curl", "-s", "--http2-prior-knowledge", "-D", "-", "-o", str(tmp_path / "answer")),
            *("-H", "content-type: application/grpc", "-H", "te: trailers", *headers),
            *("--data-binary", f"@{tmp_path}/request", f"http://127.0.0.1:{port}/distaff.v1.Inference/{method}"),
            stdout=asyncio.subprocess.PIPE,
        )
        text, _ = await process.communicate()
        return dict(line.split(": ", 1) for line in text.decode().splitlines() if ": " in line)

    async def check() -> None:
        async with native() as server:
            for method in ("Generate", "GenerateUnary"):
                plain = await trailers(server.server.port, method)
                assert plain["grpc-status"] == "0" and TRAILER not in plain
                asked = await trailers(server.server.port, method, "-H", f"{REQUEST_HEADER}: bin")
                assert asked["grpc-status"] == "0"
                data = asked[TRAILER] + "=" * (-len(asked[TRAILER]) % 4)
                read = orca_message().FromString(base64.b64decode(data))
                assert read.named_metrics["max_token_capacity"] == 256 * 4

    asyncio.run(asyncio.wait_for(check(), 20))
