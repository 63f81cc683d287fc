"""A request of the KServe protocol as a Call, and which outputs it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...backends.errors import InvalidParameterError
from ..front import Call, UnknownModelError
from .compatible import RefusedFieldError, listed
from .kserve_parameters import REFUSED, read_json, read_sampling
from .kserve_tensors import INPUTS, OUTPUTS, read_tensor
from .protos.kserve import inference_pb2 as pb

VERSION = "1"
"""The only version of a model."""

_FLAGS = {
    "return_finish_reason": ("finish_reason",),
    "return_cumulative_logprob": ("cumulative_logprob",),
    "return_logprobs": ("logprobs",),
    "return_num_input_tokens": ("num_input_tokens",),
    "return_num_output_tokens": ("num_output_tokens",),
    "return_log_probs": ("cum_log_probs", "output_log_probs"),
}
_OF_LOGPROBS = {"cumulative_logprob", "logprobs", "cum_log_probs", "output_log_probs"}
_SHARED_MEMORY = "values travel in the messages: there is no shared memory"


@dataclass(frozen=True)
class Asked:
    """What one ModelInferRequest wants.

    Attributes:
        call: for the engine.
        stream: whether answers come as they are made.
        outputs: names of those to send, in the order of `OUTPUTS`.
        with_prompt: whether the prompt stands before the answer.
        pad_id: behind the shorter answers of several in output_ids.
        raw: whether values stand apart from their tensors, as they did in the request.
        empty_final: whether the last message is to be one without outputs.
        id, model_name: come back with every answer.
    """

    call: Call
    stream: bool
    outputs: tuple[str, ...]
    with_prompt: bool
    pad_id: int
    raw: bool
    empty_final: bool
    id: str
    model_name: str

    @property
    def num_choices(self) -> int:
        return self.call.params.n


def check_version(version: str) -> None:
    """
    Raises:
        UnknownModelError: there is no such version; "" is any.
    """
    if version not in ("", VERSION):
        raise UnknownModelError(f"model_version is {version[:64]!r}, expected {VERSION!r}, or none")


def read_request(request: pb.ModelInferRequest) -> Asked:
    """
    Raises:
        DistaffError: it names the input, output or parameter that cannot be honoured.
    """
    check_version(request.model_version)
    inputs = _inputs(request)
    parameters, more = _parameters(request.parameters)
    prompt = _prompt(inputs)
    stream = _one_of(inputs, "stream", "streaming") or False
    exclude = inputs.get("exclude_input_in_output", (stream,))[0]
    if stream and not exclude:
        raise InvalidParameterError("exclude_input_in_output", False, "True, where the answer is streamed")
    outputs = _outputs(request, inputs, text=isinstance(prompt, str))
    sampling = _sampling(inputs, parameters)
    if _OF_LOGPROBS & set(outputs):
        sampling.setdefault("logprobs", 0)
    call = Call(prompt, read_sampling(sampling), model=request.model_name, **more.call)
    return Asked(
        call=call,
        stream=stream,
        outputs=outputs,
        with_prompt=not exclude,
        pad_id=inputs.get("pad_id", (0,))[0],
        raw=bool(request.raw_input_contents),
        empty_final=more.empty_final,
        id=request.id,
        model_name=request.model_name,
    )


def _inputs(request: pb.ModelInferRequest) -> dict[str, tuple[Any, ...]]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidParameterError(
            "raw_input_contents", len(raw), f"one entry for each of {len(request.inputs)} inputs"
        )
    values: dict[str, tuple[Any, ...]] = {}
    for i, tensor in enumerate(request.inputs):
        name = tensor.name
        if name in REFUSED:
            raise RefusedFieldError(name, REFUSED[name])
        if name not in INPUTS:
            raise InvalidParameterError("inputs", name[:64], f"inputs among {listed(INPUTS)}")
        if name in values:
            raise InvalidParameterError("inputs", name, "each input once")
        for parameter in tensor.parameters:
            raise RefusedFieldError(f"{name}.parameters.{parameter[:64]}", _SHARED_MEMORY)
        values[name] = read_tensor(INPUTS[name], tensor, raw[i] if raw else None)
    return values


def _prompt(inputs: Mapping[str, tuple[Any, ...]]) -> str | tuple[int, ...]:
    ids, text = inputs.get("input_ids"), inputs.get("text_input")
    if (ids is None) == (text is None):
        given = "neither" if ids is None else "both"
        raise InvalidParameterError("inputs", given, "either text_input or input_ids")
    length = inputs.get("input_lengths", (None,))[0]
    if ids is None:
        if length is not None:
            raise RefusedFieldError("input_lengths", "the prompt is a text")
        assert text is not None
        return text[0]
    if length is not None and not 1 <= length <= len(ids):
        raise InvalidParameterError("input_lengths", length, f"from 1 to the {len(ids)} token ids in input_ids")
    return ids[:length]


def _one_of(inputs: Mapping[str, tuple[Any, ...]], *names: str) -> Any:
    """The value of an input that has several names."""
    given = [name for name in names if name in inputs]
    if len(given) > 1:
        raise InvalidParameterError("inputs", " and ".join(given), "one of them")
    return inputs[given[0]][0] if given else None


def _sampling(inputs: Mapping[str, tuple[Any, ...]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters, from wherever they stand; each may be given once."""
    sampling = dict(parameters)

    def add(name: str, value: Any) -> None:
        if name in sampling:
            raise InvalidParameterError(name, value, "to be given once: the request sets it in two places")
        sampling[name] = value

    if "sampling_parameters" in inputs:
        for name, value in read_json(inputs["sampling_parameters"][0]).items():
            add(name, value)
    for name, values in inputs.items():
        if INPUTS[name].sets:
            add(INPUTS[name].sets, values if INPUTS[name].dims == (-1,) else values[0])
    if inputs.get("beam_width", (1,))[0] != 1:
        raise InvalidParameterError("beam_width", inputs["beam_width"][0], "1: there is no beam search")
    if "end_id" in inputs:  # it stands for the model's own; -1 is for none
        end = inputs["end_id"][0]
        add("ignore_eos", True)
        if end != -1:
            add("stop_token_ids", (end,))
    return sampling


@dataclass
class _More:
    """Request parameters that are none of sampling."""

    call: dict[str, Any]
    empty_final: bool = False


def _parameters(given: Mapping[str, pb.InferParameter]) -> tuple[dict[str, Any], _More]:
    sampling: dict[str, Any] = {}
    more = _More({})
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        value = None if choice is None else getattr(parameter, choice)
        match name:
            case "triton_enable_empty_final_response":
                if not isinstance(value, bool):
                    raise InvalidParameterError(f"parameters.{name}", value, "True or False")
                more.empty_final = value
            case "priority":  # 0 is the default, which is 1; lower runs first
                more.call["priority"] = -max(_count(name, value) - 1, 0)
            case "timeout":
                more.call["timeout"] = _count(name, value) / 1e6 or None
            case _:
                sampling[name] = value
    return sampling, more


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidParameterError(f"parameters.{name}", value, "a whole number from 0")
    return value


def _outputs(request: pb.ModelInferRequest, inputs: Mapping[str, tuple[Any, ...]], *, text: bool) -> tuple[str, ...]:
    """Those asked for by name, or else those that belong to the prompt's form and those that flags ask for."""
    asked = {output.name for output in request.outputs}
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidParameterError("outputs", output.name[:64], f"outputs among {listed(OUTPUTS)}")
        for parameter in output.parameters:
            reason = "classes are no output of a language model" if parameter == "classification" else _SHARED_MEMORY
            raise RefusedFieldError(f"{output.name}.parameters.{parameter[:64]}", reason)
    if not asked:
        asked = {"text_output"} if text else {"output_ids", "sequence_length"}
        for flag, names in _FLAGS.items():
            if inputs.get(flag, (False,))[0]:
                asked.update(names)
    return tuple(name for name in OUTPUTS if name in asked)
