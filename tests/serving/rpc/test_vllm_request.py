"""Every field of the vllm.grpc.engine requests is honoured, without effect for a reason, or refused by name."""

import math
from typing import Any

import pytest
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from distaff.backends.errors import DistaffError, InvalidParameterError
from distaff.serving.front import Call, status_of
from distaff.serving.rpc.compatible import RefusedFieldError
from distaff.serving.rpc.vllm_request import REFUSED, WITHOUT_EFFECT, embed_call, generate_call, num_kept
from distaff.serving.types import Kind, SamplingParams

# A value of each honoured field of SamplingParams, and the parameters that it gives.
SAMPLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "temperature": (0.5, {"temperature": 0.5}),
    "top_p": (0.5, {"top_p": 0.5}),
    "top_k": (3, {"top_k": 3}),
    "min_p": (0.25, {"min_p": 0.25}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "presence_penalty": (-0.5, {"presence_penalty": -0.5}),
    "repetition_penalty": (1.5, {"repetition_penalty": 1.5}),
    "max_tokens": (7, {"max_tokens": 7}),
    "min_tokens": (2, {"min_tokens": 2}),
    "stop": (["a", "b"], {"stop": ("a", "b")}),
    "stop_token_ids": ([4, 5], {"stop_token_ids": (4, 5)}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "n": (3, {"n": 3}),
    "logprobs": (0, {"logprobs": 0}),
    "prompt_logprobs": (2, {"prompt_logprobs": 2}),
    "seed": (-2, {"seed": 2**64 - 2}),
    "logit_bias": ({7: 1.5}, {"logit_bias": {7: 1.5}}),
}
CONSTRAINTS: dict[str, Any] = {
    "json_schema": "{}",
    "regex": "a",
    "grammar": "root ::= a",
    "structural_tag": "{}",
    "json_object": True,
    "choice": pb.ChoiceConstraint(choices=["a"]),
    "grammar_from_first_token": True,
}
OTHERS: dict[str, Any] = {
    "mm_inputs": pb.MultimodalInputs(),
    "extra_mm_inputs": [pb.MultimodalInputs()],
    "media_refs": pb.MediaRefs(),
    "kv_transfer_params": pb.KvTransferParams(),
    "kv_transfer_params_json": "",
}
TEXT_ONLY = {"skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": True}
UNSET = SamplingParams(max_tokens=None)


def call(**sampling: Any) -> Call:
    return generate_call(pb.GenerateRequest(text="a", sampling_params=pb.SamplingParams(**sampling)))


def names(message: Any) -> set[str]:
    return set(message.DESCRIPTOR.fields_by_name)


def test_every_field_of_the_protocol_is_accounted_for() -> None:
    elsewhere = {"truncate_prompt_tokens"}
    assert names(pb.SamplingParams) == {*SAMPLING, *CONSTRAINTS, *TEXT_ONLY, *elsewhere}
    honoured = {"request_id", "tokenized", "text", "sampling_params", "stream", "data_parallel_rank"}
    assert names(pb.GenerateRequest) == honoured | OTHERS.keys()
    assert names(pb.TokenizedInput) == {"input_ids", "original_text"}
    assert names(pb.EmbedRequest) == {"request_id", "tokenized"}
    assert REFUSED.keys() == CONSTRAINTS.keys() | OTHERS.keys()
    assert WITHOUT_EFFECT.keys() == TEXT_ONLY.keys() | {"original_text"}


@pytest.mark.parametrize("field", SAMPLING)
def test_what_is_honoured_arrives(field: str) -> None:
    value, expected = SAMPLING[field]
    assert call(**{field: value}).params == SamplingParams(**{"max_tokens": None, **expected})


def test_what_is_zero_without_presence_was_not_given() -> None:
    assert call().params == call(top_p=0.0, repetition_penalty=0.0, n=0, top_k=0, min_tokens=0).params == UNSET
    assert call(temperature=0.0).params.temperature == 0.0


@pytest.mark.parametrize("field", TEXT_ONLY)
def test_what_shapes_text_changes_nothing(field: str) -> None:
    assert call(**{field: True}).params == UNSET


@pytest.mark.parametrize("field", CONSTRAINTS)
def test_constraints_are_refused_by_name(field: str) -> None:
    with pytest.raises(RefusedFieldError, match=f"sampling_params.{field} is set, but .* not supported") as caught:
        call(**{field: CONSTRAINTS[field]})
    assert status_of(caught.value).grpc == "INVALID_ARGUMENT"
    assert status_of(caught.value).field == f"sampling_params.{field}"


@pytest.mark.parametrize("field", OTHERS)
def test_media_and_transfers_are_refused_even_if_empty(field: str) -> None:
    with pytest.raises(RefusedFieldError, match=f"^{field} is set, but"):
        generate_call(pb.GenerateRequest(text="a", **{field: OTHERS[field]}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan), ("temperature", -1.0), ("top_p", math.inf), ("top_p", 1.5), ("min_p", -0.5),
        ("max_tokens", 0), ("n", 10**6), ("logprobs", -1), ("prompt_logprobs", 10**6), ("logit_bias", {1: math.nan}),
        ("repetition_penalty", -1.0), ("frequency_penalty", 3.0), ("stop", [""]),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameterError, match=field):
        call(**{field: value})


def test_prompts() -> None:
    tokenized = pb.TokenizedInput(original_text="for reference", input_ids=[1, 2])
    request = pb.GenerateRequest(request_id="r", tokenized=tokenized, data_parallel_rank=0)
    assert generate_call(request) == Call((1, 2), UNSET, id="r")
    assert embed_call(pb.EmbedRequest(request_id="r", tokenized=tokenized)) == Call((1, 2), kind=Kind.EMBED, id="r")
    for wrong, field in (
        (pb.GenerateRequest(), "input"),
        (pb.GenerateRequest(text="a", data_parallel_rank=1), "data_parallel_rank"),
    ):
        with pytest.raises(DistaffError, match=field):
            generate_call(wrong)
    with pytest.raises(DistaffError, match="tokenized"):
        embed_call(pb.EmbedRequest())


def test_truncation() -> None:
    assert num_kept(pb.SamplingParams(), 128) is None
    assert num_kept(pb.SamplingParams(truncate_prompt_tokens=5), 128) == 5
    assert num_kept(pb.SamplingParams(truncate_prompt_tokens=-1), 128) == 127
    for wrong in (0, -2):
        with pytest.raises(InvalidParameterError, match="truncate_prompt_tokens"):
            num_kept(pb.SamplingParams(truncate_prompt_tokens=wrong), 128)
