"""The header of a GGUF file, read with every length checked against the file before it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. `gguf.GGUFReader` trusts the header (a changed length
makes it allocate or loop without bound) and needs seconds for a vocabulary, so only its tables are used here.
"""

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ..errors import CorruptCheckpointError, UnsupportedQuantizationError
from .byte_files import HeadOfFile, Location, ReadCount, open_bytes

MAX_STRING: Final = 16 * 2**20  # bytes; chat templates are some ten thousand
MAX_ITEMS: Final = 4 * 2**20  # entries of one array; the largest vocabularies have about 300,000 tokens
MAX_HEADER: Final = 64 * 2**20  # bytes of metadata in all
MAX_DIMENSIONS: Final = 4  # GGML_MAX_DIMS

_SCALARS: Final = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "<u1",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in its file. `shape` is in numpy order: the last axis is contiguous and quantised."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int  # byte offset in the file
    nbytes: int
    file: Location


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata as Python values, and the tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_header(path: Location) -> GGUFHeader:
    """Read and check the header of a file.

    Raises:
        CheckpointError: the file cannot be read.
        CorruptCheckpointError: truncated, garbled, overlapping or absurd.
        UnsupportedQuantizationError: a tensor has a type that this version of the gguf package does not know.
    """
    file = open_bytes(path, ReadCount())
    if file.size < 24:
        raise CorruptCheckpointError(f"{path}: found {file.size} bytes, a GGUF file has at least 24; fetch it again")
    return _Parser(path, HeadOfFile(file)).header()


class _Parser:
    """A cursor over the bytes; every read is checked against the end."""

    def __init__(self, path: Location, data: HeadOfFile) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.limit = min(self.size, MAX_HEADER)
        self.at = 0

    def header(self) -> GGUFHeader:
        if self.take(4, "magic") != b"GGUF":
            raise self.corrupt("magic", self.data[:4], "b'GGUF'", "this is not a GGUF file")
        version = self.number("I", "version")
        if version not in (2, 3):
            advice = "big-endian files are not read" if version & 0xFFFF == 0 else "convert the model again"
            raise self.corrupt("version", version, "2 or 3", advice)
        tensor_count = self.count("tensor_count", smallest=24)
        pair_count = self.count("kv_count", smallest=13)
        metadata: dict[str, Any] = {}
        for i in range(pair_count):
            key = self.string(f"key {i}")
            if key in metadata:
                raise self.corrupt(f"key {i}", key, "a key not seen before")
            metadata[key] = self.value(key)
        infos = [self.tensor_info(i) for i in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self.corrupt("general.alignment", alignment, "a power of two up to 2**20")
        data_start = -(-self.at // alignment) * alignment
        return GGUFHeader(metadata, self.place(infos, data_start, alignment))

    def place(
        self, infos: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]], data_start: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise self.corrupt(
                    f"tensor {name!r}", f"rows of {shape[-1]} values", f"a multiple of {block} for {kind.name}"
                )
            nbytes = math.prod(shape) // block * block_bytes
            start = data_start + offset
            if offset % alignment:
                raise self.corrupt(f"tensor {name!r}", f"offset {offset}", f"a multiple of {alignment}")
            if start + nbytes > self.size:
                raise self.corrupt(
                    f"tensor {name!r}",
                    f"bytes {start} to {start + nbytes}",
                    f"the end within {self.size} bytes",
                    "the file is truncated; fetch it again",
                )
            if name in tensors:
                raise self.corrupt(f"tensor {name!r}", "it twice", "one of that name")
            tensors[name] = GGUFTensor(name, shape, kind, start, nbytes, self.path)
        by_start = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for one, other in pairwise(by_start):
            if one.start + one.nbytes > other.start:
                raise self.corrupt(f"tensor {other.name!r}", f"bytes shared with {one.name!r}", "tensors apart")
        return tensors

    def tensor_info(self, i: int) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self.string(f"name of tensor {i}")
        num_axes = self.number("I", f"tensor {name!r} dimensions")
        if not 1 <= num_axes <= MAX_DIMENSIONS:
            raise self.corrupt(f"tensor {name!r}", f"{num_axes} dimensions", f"1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("Q", f"tensor {name!r} shape") for _ in range(num_axes))[::-1]
        if min(shape) < 1 or max(shape) > 8 * self.size:
            raise self.corrupt(f"tensor {name!r}", f"shape {list(shape)}", f"dimensions that fit {self.size} bytes")
        kind = self.number("I", f"tensor {name!r} type")
        try:
            known = GGMLQuantizationType(kind)
        except ValueError:
            raise UnsupportedQuantizationError(
                f"{self.path}: tensor {name!r} has quantisation type {kind}; known are "
                f"{', '.join(entry.name for entry in GGMLQuantizationType)}; fetch another quantisation of the model"
            ) from None
        return name, shape, known, self.number("Q", f"tensor {name!r} offset")

    def value(self, key: str) -> Any:
        kind = self.value_type(key)
        if kind == GGUFValueType.STRING:
            return self.string(key)
        if kind != GGUFValueType.ARRAY:
            return self.scalars(kind, 1, key)[0]
        item = self.value_type(key)
        if item == GGUFValueType.ARRAY:
            raise self.corrupt(key, "an array of arrays", "an array of numbers or strings")
        if item == GGUFValueType.STRING:
            return [self.string(key) for _ in range(self.count(key, smallest=8))]
        return self.scalars(item, self.count(key, smallest=1), key)

    def scalars(self, kind: GGUFValueType, count: int, key: str) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        numbers = np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if kind == GGUFValueType.BOOL:
            if count and numbers.max() > 1:
                raise self.corrupt(key, int(numbers.max()), "a bool, 0 or 1")
            numbers = numbers.astype(bool)
        return numbers.tolist()

    def value_type(self, key: str) -> GGUFValueType:
        kind = self.number("I", key)
        try:
            return GGUFValueType(kind)
        except ValueError:
            raise self.corrupt(key, f"value type {kind}", "0 to 12") from None

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        if length > MAX_STRING:
            raise self.corrupt(what, f"a string of {length} bytes", f"at most {MAX_STRING}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(what, f"byte {error.object[error.start]:#04x} in a string", "UTF-8") from None

    def count(self, what: str, smallest: int) -> int:
        found = self.number("Q", what)
        if found > MAX_ITEMS or found * smallest > self.limit - self.at:
            raise self.corrupt(
                what, f"{found} entries", f"at most {min(MAX_ITEMS, (self.limit - self.at) // smallest)}"
            )
        return found

    def number(self, form: str, what: str) -> int:
        return struct.unpack("<" + form, self.take(struct.calcsize(form), what))[0]

    def take(self, length: int, what: str) -> bytes:
        if length > self.limit - self.at:
            raise self.corrupt(
                what,
                f"{length} bytes wanted at byte {self.at}",
                f"at most {self.limit - self.at} left",
                "fetch it again",
            )
        self.at += length
        return self.data[self.at - length : self.at]

    def corrupt(
        self, what: str, found: object, expected: str, advice: str = "fetch it again"
    ) -> CorruptCheckpointError:
        shown = what if len(what) <= 120 else what[:117] + "..."
        return CorruptCheckpointError(f"{self.path}: {shown}: found {str(found)[:200]}, expected {expected}; {advice}")
