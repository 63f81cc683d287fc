"""Tensors on the wire are as NumPy lays them out, and what is not as it says is refused."""

import struct
from typing import Any

import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.rpc.kserve_tensors import DATATYPES, INPUTS, OUTPUTS, Tensor, read_tensor, write_tensor
from distaff.serving.rpc.protos.kserve import inference_pb2 as pb

NUMPY = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
    "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
TEXTS = ["", "abc", "ä€🙂"]
ROW = Tensor("x", "INT32", (-1,))


def given(datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )


def test_every_datatype_is_a_tested_one() -> None:
    assert DATATYPES.keys() == NUMPY.keys() | {"BYTES"}
    assert {tensor.datatype for tensor in (*INPUTS.values(), *OUTPUTS.values())} <= DATATYPES.keys()
    assert {datatype.config for datatype in DATATYPES.values()} <= set(pb.DataType.keys())


@pytest.mark.parametrize("datatype", NUMPY)
def test_numbers_are_numpys(datatype: str) -> None:
    array = np.array([0, 1, 1] if datatype == "BOOL" else [0, 1, 100], NUMPY[datatype])
    declared = Tensor("x", datatype, (-1,))
    assert read_tensor(declared, given(datatype, [3]), array.tobytes()) == tuple(array.tolist())
    typed = given(datatype, [1, 3], **{DATATYPES[datatype].contents: array.tolist()})
    assert read_tensor(declared, typed, None) == tuple(array.tolist())
    response = pb.ModelInferResponse()
    write_tensor(response, declared, array.tolist(), (3,), raw=True)
    write_tensor(response, declared, array.tolist(), (3,), raw=False)
    assert response.raw_output_contents[0] == array.tobytes()
    assert list(getattr(response.outputs[1].contents, DATATYPES[datatype].contents)) == array.tolist()
    assert not response.outputs[0].HasField("contents") and len(response.raw_output_contents) == 1


def test_texts_have_their_length_before_them() -> None:
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in TEXTS)
    declared = Tensor("x", "BYTES", (-1,))
    assert read_tensor(declared, given("BYTES", [3]), raw) == tuple(TEXTS)
    typed = given("BYTES", [3], bytes_contents=[text.encode() for text in TEXTS])
    assert read_tensor(declared, typed, None) == tuple(TEXTS)
    response = pb.ModelInferResponse()
    write_tensor(response, declared, TEXTS, (3,), raw=True)
    assert response.raw_output_contents[0] == raw


def test_any_whole_or_real_datatype_does() -> None:
    assert read_tensor(Tensor("x", "INT32"), given("UINT64", [1, 1]), struct.pack("<Q", 2**40)) == (2**40,)
    assert read_tensor(Tensor("x", "FP32"), given("FP64", []), struct.pack("<d", 0.1)) == (0.1,)


@pytest.mark.parametrize(
    ("tensor", "raw", "declared", "words"),
    [
        (given("FP32", [1]), bytes(4), ROW, "x.datatype"),
        (given("INT32", [2]), bytes(4), ROW, "x.shape"),
        (given("INT32", [-1]), bytes(4), ROW, "x.shape"),
        (given("INT32", [2**62, 2**62]), bytes(4), ROW, "x.shape"),
        (given("INT32", [2, 1]), bytes(8), ROW, "one row"),
        (given("INT32", [2]), bytes(8), Tensor("x", "INT32"), "one value"),
        (given("INT32", [0]), b"", Tensor("x", "INT32"), "one value"),
        (given("INT32", [1]), bytes(3), ROW, "whole values"),
        (given("BYTES", [1]), bytes(3), Tensor("x", "BYTES"), "length in 4 bytes"),
        (given("BYTES", [1]), b"\xff\xff\xff\xff", Tensor("x", "BYTES"), "length in 4 bytes"),
        (given("BYTES", [1]), b"\x01\0\0\0\xff", Tensor("x", "BYTES"), "UTF-8"),
        (given("INT32", [1], fp32_contents=[1.0]), None, ROW, "x.shape"),
        (given("FP16", [1]), bytes(2), Tensor("x", "FP32"), "x.datatype"),
    ],
)
def test_what_is_not_as_it_says_is_refused(tensor: Any, raw: bytes | None, declared: Tensor, words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        read_tensor(declared, tensor, raw)
