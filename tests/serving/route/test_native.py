"""Where prompts stand in the messages of each protocol."""

from typing import Any

import pytest
from smg_grpc_proto import vllm_engine_pb2

from distaff.serving.client.requests import embed_request, generate_request, score_request
from distaff.serving.route.asked import Asked
from distaff.serving.route.native import BATCH, PROTOCOL, READERS
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2

INFERENCE = "/distaff.v1.Inference/"
VLLM = "/vllm.grpc.engine.VllmEngine/"


def read(method: str, message: Any) -> Asked:
    return READERS[method](message.SerializeToString())


def test_texts_ids_and_conversations() -> None:
    generate = INFERENCE + "Generate"
    assert read(generate, generate_request("héllo", {})) == Asked("héllo".encode())
    assert read(generate, generate_request([1, 258], {"cache_salt": "s"})) == Asked(
        bytes([1, 0, 0, 0, 2, 1, 0, 0]), b"s"
    )
    talk = [{"role": "user", "content": "a"}]
    longer = [*talk, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    short, long = (read(generate, generate_request(each, {})).beginning for each in (talk, longer))
    assert long.startswith(short) and b"a" in short and b"c" in long
    assert read(generate, generate_request("x", {"use_prefix_cache": False})) == Asked()
    assert read(INFERENCE + "Score", score_request("x", {})) == Asked(b"x")
    assert read(INFERENCE + "Embed", embed_request("x", "mean", {})) == Asked(b"x")
    assert read(generate, generate_request("x", {"request_id": "r"})) == Asked(b"x", id="r")
    assert read(INFERENCE + "Embed", embed_request("x", "mean", {"request_id": "r"})).id == "r"


def test_vllm() -> None:
    request = vllm_engine_pb2.GenerateRequest
    assert read(VLLM + "Generate", request(text="x")) == Asked(b"x")
    ids = request(request_id="r", tokenized=vllm_engine_pb2.TokenizedInput(input_ids=[7]))
    assert read(VLLM + "Generate", ids) == Asked(bytes([7, 0, 0, 0]), id="r")


@pytest.mark.parametrize("method", READERS)
def test_what_cannot_be_read_has_no_prompt(method: str) -> None:
    assert READERS[method](b"\xff\xff") == READERS[method](b"") == Asked()
    negative = generate_request([-1], {}).SerializeToString()
    assert READERS[INFERENCE + "Generate"](negative) == Asked()


def test_a_request_is_cancelled_if_it_was_anywhere() -> None:
    gone, unknown = inference_pb2.CANCEL_STATE_CANCELLED, inference_pb2.CANCEL_STATE_UNKNOWN
    answers = [
        inference_pb2.CancelResponse(states=states).SerializeToString()
        for states in ([unknown, gone, unknown], [unknown, unknown, gone])
    ]
    joined = inference_pb2.CancelResponse.FromString(PROTOCOL.everywhere[INFERENCE + "Cancel"](answers))
    assert list(joined.states) == [unknown, gone, gone]


@pytest.mark.parametrize(
    ("method", "repeatable", "refused"),
    [
        (BATCH, True, False),
        (INFERENCE + "GenerateUnary", True, False),
        ("/distaff.v1.Tokenization/Tokenize", True, False),
        (VLLM + "Generate", True, False),
        (VLLM + "StartProfile", False, False),
        ("/inference.GRPCInferenceService/ModelInfer", True, False),
        ("/somebody.Else/Pay", False, False),
        ("/distaff.v1.Admin/Drain", False, True),
        ("/distaff.v1.BatchJobs/CreateBatchJob", False, True),
    ],
)
def test_what_may_be_sent_twice_and_what_not_at_all(method: str, repeatable: bool, refused: bool) -> None:
    assert PROTOCOL.is_repeatable(method) == repeatable
    assert (PROTOCOL.refusal(method) is not None) == refused
