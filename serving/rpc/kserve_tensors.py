"""The tensors of a language model in the KServe protocol: their names, and their values to and from the wire.

Two vocabularies are in use, that of Triton's vLLM backend and that of its TensorRT-LLM backend; both are understood.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ...backends.errors import InvalidParameterError
from .protos.kserve import inference_pb2 as pb


@dataclass(frozen=True)
class Datatype:
    """How values of one type travel.

    Attributes:
        config: its name in a model's configuration.
        contents: the field of InferTensorContents.
        code: of one value, for `struct`; "" for texts, each of which has its length before it.
    """

    config: str
    contents: str
    code: str


DATATYPES: Mapping[str, Datatype] = MappingProxyType(
    {
        "BOOL": Datatype("TYPE_BOOL", "bool_contents", "?"),
        "INT8": Datatype("TYPE_INT8", "int_contents", "b"),
        "INT16": Datatype("TYPE_INT16", "int_contents", "h"),
        "INT32": Datatype("TYPE_INT32", "int_contents", "i"),
        "INT64": Datatype("TYPE_INT64", "int64_contents", "q"),
        "UINT8": Datatype("TYPE_UINT8", "uint_contents", "B"),
        "UINT16": Datatype("TYPE_UINT16", "uint_contents", "H"),
        "UINT32": Datatype("TYPE_UINT32", "uint_contents", "I"),
        "UINT64": Datatype("TYPE_UINT64", "uint64_contents", "Q"),
        "FP32": Datatype("TYPE_FP32", "fp32_contents", "f"),
        "FP64": Datatype("TYPE_FP64", "fp64_contents", "d"),
        "BYTES": Datatype("TYPE_STRING", "bytes_contents", ""),
    }
)
_WHOLE = frozenset(name for name in DATATYPES if "INT" in name)
_REAL = frozenset(("FP32", "FP64"))


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        dims: -1 for what varies; an input of one value may have any shape that holds one.
        sets: for an input that is a sampling parameter, its name there.
    """

    name: str
    datatype: str
    dims: tuple[int, ...] = (1,)
    sets: str = ""


INPUTS: Mapping[str, Tensor] = MappingProxyType(
    {
        tensor.name: tensor
        for tensor in (
            # Of both, and of vLLM's alone.
            Tensor("text_input", "BYTES"),
            Tensor("stream", "BOOL"),
            Tensor("exclude_input_in_output", "BOOL"),
            Tensor("sampling_parameters", "BYTES"),
            Tensor("return_finish_reason", "BOOL"),
            Tensor("return_cumulative_logprob", "BOOL"),
            Tensor("return_logprobs", "BOOL"),
            Tensor("return_num_input_tokens", "BOOL"),
            Tensor("return_num_output_tokens", "BOOL"),
            # Of TensorRT-LLM's.
            Tensor("input_ids", "INT32", (-1,)),
            Tensor("input_lengths", "INT32"),
            Tensor("streaming", "BOOL"),
            Tensor("return_log_probs", "BOOL"),
            Tensor("end_id", "INT32"),
            Tensor("pad_id", "INT32"),
            Tensor("beam_width", "INT32"),
            Tensor("max_tokens", "INT32", sets="max_tokens"),
            Tensor("request_output_len", "INT32", sets="max_tokens"),
            Tensor("min_tokens", "INT32", sets="min_tokens"),
            Tensor("min_length", "INT32", sets="min_tokens"),
            Tensor("num_return_sequences", "INT32", sets="n"),
            Tensor("temperature", "FP32", sets="temperature"),
            Tensor("top_k", "INT32", sets="top_k"),
            Tensor("runtime_top_k", "INT32", sets="top_k"),
            Tensor("top_p", "FP32", sets="top_p"),
            Tensor("runtime_top_p", "FP32", sets="top_p"),
            Tensor("min_p", "FP32", sets="min_p"),
            Tensor("repetition_penalty", "FP32", sets="repetition_penalty"),
            Tensor("presence_penalty", "FP32", sets="presence_penalty"),
            Tensor("frequency_penalty", "FP32", sets="frequency_penalty"),
            Tensor("seed", "UINT64", sets="seed"),
            Tensor("random_seed", "UINT64", sets="seed"),
            Tensor("stop_words", "BYTES", (-1,), sets="stop"),
            Tensor("bad_words", "BYTES", (-1,), sets="bad_words"),
        )
    }
)
OUTPUTS: Mapping[str, Tensor] = MappingProxyType(
    {
        tensor.name: tensor
        for tensor in (
            Tensor("text_output", "BYTES", (-1,)),
            Tensor("finish_reason", "BYTES", (-1,)),
            Tensor("cumulative_logprob", "FP32", (-1,)),
            Tensor("logprobs", "BYTES", (-1,)),
            Tensor("num_input_tokens", "UINT32", (1,)),
            Tensor("num_output_tokens", "UINT32", (-1,)),
            Tensor("output_ids", "INT32", (-1, -1)),
            Tensor("sequence_length", "INT32", (-1,)),
            Tensor("cum_log_probs", "FP32", (-1,)),
            Tensor("output_log_probs", "FP32", (-1, -1)),
        )
    }
)


def read_tensor(declared: Tensor, given: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> tuple[Any, ...]:
    """The values of an input: bool, int, float or str.

    Args:
        raw: its values, if they stand apart from it.

    Raises:
        InvalidParameterError: it is not what its declaration says, or its shape is not that of its values.
    """
    name = declared.name
    accepted = _WHOLE if declared.datatype in _WHOLE else _REAL if declared.datatype in _REAL else {declared.datatype}
    if given.datatype not in accepted:
        raise InvalidParameterError(f"{name}.datatype", given.datatype, declared.datatype)
    datatype = DATATYPES[given.datatype]
    if raw is None:
        values = tuple(getattr(given.contents, datatype.contents))
    else:
        values = _texts(name, raw) if not datatype.code else _numbers(name, raw, datatype.code)
    shape = tuple(given.shape)
    if any(size < 0 for size in shape) or math.prod(shape) != len(values):
        raise InvalidParameterError(f"{name}.shape", shape, f"the shape of its values, of which it has {len(values)}")
    if declared.dims == (1,) and len(values) != 1:
        raise InvalidParameterError(f"{name}.shape", shape, "one value: requests are not batched")
    if declared.dims == (-1,) and math.prod(shape[:-1]) != 1:
        raise InvalidParameterError(
            f"{name}.shape", shape, "one row of values: requests are not batched by their sender"
        )
    if datatype.code:
        return values
    try:
        return tuple(value.decode() for value in values)
    except UnicodeDecodeError:
        raise InvalidParameterError(name, "...", "text in UTF-8") from None


def write_tensor(
    response: pb.ModelInferResponse, declared: Tensor, values: Sequence[Any], shape: Sequence[int], *, raw: bool
) -> None:
    """Adds an output.

    Args:
        values: flat, in row-major order; texts as str.
        raw: whether the values stand apart from the tensor.
    """
    output = response.outputs.add(name=declared.name, datatype=declared.datatype, shape=shape)
    datatype = DATATYPES[declared.datatype]
    if not datatype.code:
        values = [value.encode() for value in values]
    if not raw:
        getattr(output.contents, datatype.contents).extend(values)
    elif datatype.code:
        response.raw_output_contents.append(struct.pack(f"<{len(values)}{datatype.code}", *values))
    else:
        response.raw_output_contents.append(b"".join(struct.pack("<I", len(value)) + value for value in values))


def _numbers(name: str, raw: bytes, code: str) -> tuple[Any, ...]:
    count, rest = divmod(len(raw), struct.calcsize(f"<{code}"))
    if rest:
        raise InvalidParameterError(name, f"{len(raw)} bytes", "whole values of its datatype")
    return struct.unpack(f"<{count}{code}", raw)


def _texts(name: str, raw: bytes) -> tuple[bytes, ...]:
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise InvalidParameterError(name, f"{len(raw)} bytes", "texts, each behind its length in 4 bytes")
        texts.append(raw[at + 4 : end])
        at = end
    return tuple(texts)
