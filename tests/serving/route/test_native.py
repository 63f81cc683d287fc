"""Where prompts stand in the messages of each protocol."""

from typing import Any

import pytest
from smg_grpc_proto import vllm_engine_pb2

from distaff.serving.client.requests import embed_request, generate_request, score_request
from distaff.serving.route.native import EVERYWHERE, READERS
from distaff.serving.route.prompts import Prompt
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2

INFERENCE = "/distaff.v1.Inference/"
VLLM = "/vllm.grpc.engine.VllmEngine/"


def read(method: str, message: Any) -> Prompt:
    return READERS[method](message.SerializeToString())


def test_texts_ids_and_conversations() -> None:
    generate = INFERENCE + "Generate"
    assert read(generate, generate_request("héllo", {})) == Prompt("héllo".encode())
    assert read(generate, generate_request([1, 258], {"cache_salt": "s"})) == Prompt(
        bytes([1, 0, 0, 0, 2, 1, 0, 0]), b"s"
    )
    talk = [{"role": "user", "content": "a"}]
    longer = [*talk, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    short, long = (read(generate, generate_request(each, {})).beginning for each in (talk, longer))
    assert long.startswith(short) and b"a" in short and b"c" in long
    assert read(generate, generate_request("x", {"use_prefix_cache": False})) == Prompt()
    assert read(INFERENCE + "Score", score_request("x", {})) == Prompt(b"x")
    assert read(INFERENCE + "Embed", embed_request("x", "mean", {})) == Prompt(b"x")
    item = inference_pb2.BatchItem(key="k", request=generate_request("x", {}))
    assert read(INFERENCE + "GenerateBatch", inference_pb2.GenerateBatchRequest(items=[item])) == Prompt(b"x")


def test_vllm() -> None:
    request = vllm_engine_pb2.GenerateRequest
    assert read(VLLM + "Generate", request(text="x")) == Prompt(b"x")
    ids = request(tokenized=vllm_engine_pb2.TokenizedInput(input_ids=[7]))
    assert read(VLLM + "Generate", ids) == Prompt(bytes([7, 0, 0, 0]))


@pytest.mark.parametrize("method", READERS)
def test_what_cannot_be_read_has_no_prompt(method: str) -> None:
    assert READERS[method](b"\xff\xff") == READERS[method](b"") == Prompt()
    negative = generate_request([-1], {}).SerializeToString()
    assert READERS[INFERENCE + "Generate"](negative) == Prompt()


def test_a_request_is_cancelled_if_it_was_anywhere() -> None:
    gone, unknown = inference_pb2.CANCEL_STATE_CANCELLED, inference_pb2.CANCEL_STATE_UNKNOWN
    answers = [
        inference_pb2.CancelResponse(states=states).SerializeToString()
        for states in ([unknown, gone, unknown], [unknown, unknown, gone])
    ]
    joined = inference_pb2.CancelResponse.FromString(EVERYWHERE[INFERENCE + "Cancel"](answers))
    assert list(joined.states) == [unknown, gone, gone]
