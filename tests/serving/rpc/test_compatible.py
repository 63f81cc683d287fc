"""What the compatible services share, and that their document names all that they know."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from distaff.serving.front import FrontLimits, SlowReaderError, status_of
from distaff.serving.rpc import jetstream, kserve, kserve_parameters, kserve_tensors, vllm, vllm_request
from distaff.serving.rpc.compatible import RefusedFieldError, refuse
from distaff.serving.rpc.failures import detailed
from distaff.serving.rpc.protos.jetstream import jetstream_pb2

from ..served import serving
from .compat import run, until

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "serving" / "compatible.md"


def test_a_refusal_names_the_field_to_people_and_programs() -> None:
    with pytest.raises(RefusedFieldError) as caught:
        refuse(pb.SamplingParams(regex="secret"), {"regex": "it is too hard"}, "sampling_params.")
    status = detailed(status_of(caught.value))
    assert status.message == "sampling_params.regex is set, but it is too hard: leave it out"
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad) and bad.field_violations[0].field == "sampling_params.regex"
    refuse(pb.SamplingParams(), {"regex": "it is not set"})


class Stuck:
    """A context whose client takes one message, and reads no more until it is told to."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.reads = asyncio.Event()

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def write(self, message: Any) -> None:
        self.written.append(message)
        if len(self.written) > 1:
            await self.reads.wait()


TEXT = jetstream_pb2.DecodeRequest.TextContent(text="abc")


@pytest.mark.parametrize("name", ["vllm", "jetstream"])
def test_a_reader_that_stops_holds_nothing_of_the_engine(name: str) -> None:
    """The RPC waits with its reader: gRPC sends no status before what was written is taken. Then it tells the cut."""

    async def test() -> None:
        limits = FrontLimits(stall_seconds=0.1)
        async with serving(limits=limits) as served:
            served.programs.step_seconds = 0.02
            context = Stuck()
            if name == "vllm":
                asked = pb.GenerateRequest(text="abc", stream=True)
                work = asyncio.create_task(vllm.VllmEngine(served.front).Generate(asked, context))
            else:
                decode = jetstream_pb2.DecodeRequest(text_content=TEXT)
                work = asyncio.create_task(jetstream.Orchestrator(served.front).Decode(decode, context))
            await until(lambda: served.front.counters.stalled)
            await served.check_empty()
            assert len(context.written) == 2 and not work.done()
            context.reads.set()
            if name == "vllm":
                await work
                assert context.written[-1].complete.finish_reason == "abort"
            else:
                with pytest.raises(SlowReaderError):
                    await work

    run(test())


def test_the_document_names_everything_that_is_known() -> None:
    sections = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)
    named = {section.split()[0]: set(re.findall(r"`(\w+)`", section)) for section in sections}
    vllm = named["vllm.grpc.engine.VllmEngine"]
    assert vllm_request.REFUSED.keys() | vllm_request.WITHOUT_EFFECT.keys() <= vllm
    assert {method.name for method in pb.DESCRIPTOR.services_by_name["VllmEngine"].methods} <= vllm
    triton = named["inference.GRPCInferenceService"]
    assert kserve_tensors.INPUTS.keys() | kserve_tensors.OUTPUTS.keys() | kserve_parameters.REFUSED.keys() <= triton
    assert {name for name in vars(kserve.InferenceService) if name[0].isupper()} <= triton
    fields = {field.name for field in jetstream_pb2.DecodeRequest.DESCRIPTOR.fields}
    assert fields | jetstream.REFUSED.keys() | {"Decode", "HealthCheck"} <= named["jetstream_proto.Orchestrator"]
