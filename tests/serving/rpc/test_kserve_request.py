"""Every input, output and parameter of a KServe request is honoured or refused by name."""

from typing import Any

import pytest

from distaff.backends.errors import DistaffError
from distaff.serving.rpc.kserve_parameters import REFUSED
from distaff.serving.rpc.kserve_request import Asked, read_request
from distaff.serving.rpc.kserve_tensors import DATATYPES, INPUTS, OUTPUTS
from distaff.serving.rpc.protos.kserve import inference_pb2 as pb
from distaff.serving.types import SamplingParams

TEXT = {"text_input": "abc"}
IDS = {"input_ids": [1, 2, 3]}

# A value of each input beside a prompt, and what it changes: of the sampling parameters, or of what is asked.
EFFECTS: dict[str, tuple[dict[str, Any], Any, dict[str, Any], dict[str, Any]]] = {
    "text_input": ({}, "abc", {}, {"outputs": ("text_output",)}),
    "input_ids": ({}, [1, 2, 3], {}, {"outputs": ("output_ids", "sequence_length")}),
    "input_lengths": (IDS, 2, {}, {"prompt": (1, 2)}),
    "stream": (TEXT, True, {}, {"stream": True, "with_prompt": False}),
    "streaming": (TEXT, True, {}, {"stream": True, "with_prompt": False}),
    "exclude_input_in_output": (TEXT, True, {}, {"with_prompt": False}),
    "sampling_parameters": (TEXT, '{"top_k": 3}', {"top_k": 3}, {}),
    "return_finish_reason": (TEXT, True, {}, {"outputs": ("text_output", "finish_reason")}),
    "return_cumulative_logprob": (TEXT, True, {"logprobs": 0}, {"outputs": ("text_output", "cumulative_logprob")}),
    "return_logprobs": (TEXT, True, {"logprobs": 0}, {"outputs": ("text_output", "logprobs")}),
    "return_num_input_tokens": (TEXT, True, {}, {"outputs": ("text_output", "num_input_tokens")}),
    "return_num_output_tokens": (TEXT, True, {}, {"outputs": ("text_output", "num_output_tokens")}),
    "return_log_probs": (
        TEXT, True, {"logprobs": 0}, {"outputs": ("text_output", "cum_log_probs", "output_log_probs")}
    ),
    "end_id": (TEXT, 5, {"stop_token_ids": (5,), "ignore_eos": True}, {}),
    "pad_id": (TEXT, 5, {}, {"pad_id": 5}),
    "beam_width": (TEXT, 1, {}, {}),
    "max_tokens": (TEXT, 7, {"max_tokens": 7}, {}),
    "request_output_len": (TEXT, 7, {"max_tokens": 7}, {}),
    "min_tokens": (TEXT, 2, {"min_tokens": 2}, {}),
    "min_length": (TEXT, 2, {"min_tokens": 2}, {}),
    "num_return_sequences": (TEXT, 2, {"n": 2}, {}),
    "temperature": (TEXT, 0.5, {"temperature": 0.5}, {}),
    "top_k": (TEXT, 3, {"top_k": 3}, {}),
    "runtime_top_k": (TEXT, 3, {"top_k": 3}, {}),
    "top_p": (TEXT, 0.5, {"top_p": 0.5}, {}),
    "runtime_top_p": (TEXT, 0.5, {"top_p": 0.5}, {}),
    "min_p": (TEXT, 0.5, {"min_p": 0.5}, {}),
    "repetition_penalty": (TEXT, 1.5, {"repetition_penalty": 1.5}, {}),
    "presence_penalty": (TEXT, 0.5, {"presence_penalty": 0.5}, {}),
    "frequency_penalty": (TEXT, 0.5, {"frequency_penalty": 0.5}, {}),
    "seed": (TEXT, 2**63, {"seed": 2**63}, {}),
    "random_seed": (TEXT, 3, {"seed": 3}, {}),
    "stop_words": (TEXT, ["a", "b"], {"stop": ("a", "b")}, {}),
    "bad_words": (TEXT, ["a", "b"], {"bad_words": ("a", "b")}, {}),
}  # fmt: skip


def request(inputs: dict[str, Any], outputs: tuple[str, ...] = (), **parameters: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", id="i", outputs=[{"name": name} for name in outputs])
    for name, value in inputs.items():
        datatype = INPUTS[name].datatype if name in INPUTS else "INT32"
        given = value if isinstance(value, list) else [value]
        values: Any = [one.encode() if isinstance(one, str) else one for one in given]
        contents = pb.InferTensorContents(**{DATATYPES[datatype].contents: values})
        made.inputs.add(name=name, datatype=datatype, shape=[len(values)], contents=contents)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(made.parameters[name], kind, value)
    return made


def seen(asked: Asked) -> dict[str, Any]:
    names = ("stream", "outputs", "with_prompt", "pad_id", "empty_final")
    return {"prompt": asked.call.prompt, **{name: getattr(asked, name) for name in names}}


def test_every_field_of_the_request_is_accounted_for() -> None:
    """Each is set to something by a test of this file or of test_kserve.py; a new one must be."""
    fields = {
        "model_name", "model_version", "id", "parameters", "inputs", "outputs", "raw_input_contents",
    }  # fmt: skip
    assert set(pb.ModelInferRequest.DESCRIPTOR.fields_by_name) == fields
    tensor = {"name", "datatype", "shape", "parameters", "contents"}
    assert set(pb.ModelInferRequest.InferInputTensor.DESCRIPTOR.fields_by_name) == tensor
    assert set(pb.ModelInferRequest.InferRequestedOutputTensor.DESCRIPTOR.fields_by_name) == {"name", "parameters"}
    assert INPUTS.keys() == EFFECTS.keys() and not INPUTS.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", EFFECTS)
def test_every_input_has_its_effect(name: str) -> None:
    prompt, value, sampling, changes = EFFECTS[name]
    plain = {"prompt": "abc", "stream": False, "outputs": ("text_output",), "with_prompt": True, "pad_id": 0,
             "empty_final": False}  # fmt: skip
    if prompt is IDS or name == "input_ids":
        plain |= {"prompt": (1, 2, 3), "outputs": ("output_ids", "sequence_length")}
    asked = read_request(request({**prompt, name: value}))
    assert seen(asked) == {**plain, **changes}
    assert asked.call.params == SamplingParams(**sampling)
    assert asked.call.model == asked.model_name == "m" and asked.id == "i"


def test_outputs_are_those_asked_for_by_name() -> None:
    asked = read_request(request({**TEXT, "return_finish_reason": True}, outputs=("num_output_tokens", "output_ids")))
    assert asked.outputs == ("num_output_tokens", "output_ids")
    assert read_request(request(TEXT, outputs=tuple(OUTPUTS))).outputs == tuple(OUTPUTS)
    assert read_request(request(TEXT, outputs=("logprobs",))).call.params.logprobs == 0
    more = request({**TEXT, "sampling_parameters": '{"logprobs": 2}'}, outputs=("logprobs",))
    assert read_request(more).call.params.logprobs == 2


def test_request_parameters() -> None:
    asked = read_request(request(TEXT, priority=3, timeout=1_500_000, triton_enable_empty_final_response=True, top_k=3))
    assert asked.call.priority == -2 and asked.call.timeout == 1.5 and asked.empty_final
    assert asked.call.params == SamplingParams(top_k=3)
    first, default = read_request(request(TEXT, priority=1)), read_request(request(TEXT, priority=0, timeout=0))
    assert first.call.priority == default.call.priority == 0 and default.call.timeout is None
    spelled = read_request(request(TEXT, max_tokens="5", temperature=0.5))
    assert spelled.call.params == SamplingParams(max_tokens=5, temperature=0.5)


def parameter_of(where: str) -> pb.ModelInferRequest:
    made = request(TEXT, outputs=("text_output",))
    target = made.inputs[0] if where == "input" else made.outputs[0]
    target.parameters["shared_memory_region"].string_param = "region"
    return made


def with_raw(*entries: bytes) -> pb.ModelInferRequest:
    made = request(TEXT)
    made.raw_input_contents.extend(entries)
    return made


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (request({}), "neither"),
        (request({**TEXT, **IDS}), "both"),
        (request({**TEXT, "nonsense": 1}), "nonsense"),
        (request({**TEXT, "lora_task_id": 1}), "lora_task_id is set, but there are no adapters"),
        (request({**TEXT, "beam_width": 2}), "beam_width"),
        (request({**TEXT, "stream": True, "streaming": True}), "stream and streaming"),
        (request({**TEXT, "stream": True, "exclude_input_in_output": False}), "exclude_input_in_output"),
        (request({**TEXT, "max_tokens": 1, "request_output_len": 1}), "max_tokens .* once"),
        (request({**TEXT, "top_k": 1}, top_k=1), "top_k .* once"),
        (request({**TEXT, "input_lengths": 1}), "input_lengths"),
        (request({**IDS, "input_lengths": 4}), "input_lengths"),
        (request({**TEXT, "sampling_parameters": "[]"}), "sampling_parameters"),
        (request(TEXT, outputs=("nonsense",)), "nonsense"),
        (request(TEXT, sequence_id=1), "sequence_id"),
        (request(TEXT, lora_name="a"), "lora_name"),
        (request(TEXT, timeout=-1), "timeout"),
        (request(TEXT, priority="high"), "priority"),
        (request(TEXT, triton_enable_empty_final_response=1), "triton_enable_empty_final_response"),
        (parameter_of("input"), "text_input.parameters.shared_memory_region .* shared memory"),
        (parameter_of("output"), "text_output.parameters.shared_memory_region .* shared memory"),
        (with_raw(b"", b""), "raw_input_contents"),
        (pb.ModelInferRequest(model_version="2"), "model_version"),
    ],
)
def test_what_cannot_be_honoured_is_named(wrong: pb.ModelInferRequest, words: str) -> None:
    with pytest.raises(DistaffError, match=words):
        read_request(wrong)


def test_an_input_comes_once() -> None:
    twice = request(TEXT)
    twice.inputs.append(twice.inputs[0])
    with pytest.raises(DistaffError, match="each input once"):
        read_request(twice)
