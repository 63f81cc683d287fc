"""Blocks of GGUF's quantisations as numbers, scales and minima, in the order that products take them.

Layouts: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml. A byte of four-bit types holds number i of
a block in its low half and number i + 16 (of 64: i + 32) in its high one; here neighbours share a byte.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from jaxtyping import Shaped, UInt8

from .gguf_file import GGUFFile
from .gguf_header import GGUFTensor
from .kept import Form
from .runs import Box, Runs, whole
from .stored_linears import Span, in_halves

type Blocks = UInt8[np.ndarray, "B bytes"]
type Part = Callable[[Blocks], Shaped[np.ndarray, "B width"]]


@dataclass(frozen=True)
class BlockType:
    """How to take blocks of one type apart.

    Args:
        kind: of the numbers, as in Quantized.
        group: how many numbers share a scale.
        parts: what Quantized calls so, of blocks.
        scales, minima: types of scales and minima; None: there are no minima.
    """

    kind: str
    group: int
    parts: Mapping[str, Part]
    scales: str = "float16"
    minima: str | None = None

    def form(self, width: int) -> Form:
        """Of rows of so many numbers."""
        return Form(self.kind, width // self.group, self.scales, self.minima)


def _bytes(start: int, stop: int) -> Part:
    return lambda blocks: blocks[:, start:stop]


def _as(dtype: str, start: int, stop: int) -> Part:
    return lambda blocks: np.ascontiguousarray(blocks[:, start:stop]).view(dtype)


def _halves(start: int, stop: int, apart: int = 16) -> Part:
    """Bytes of numbers that stand so far apart."""

    def part(blocks: Blocks) -> UInt8[np.ndarray, "B width"]:
        found = blocks[:, start:stop].reshape(len(blocks), -1, 1, apart)
        numbers = np.concatenate([found & 15, found >> 4], axis=2)
        return in_halves(numbers.reshape(len(blocks), -1))

    return part


def _six_bits(blocks: Blocks) -> tuple[UInt8[np.ndarray, "B 8"], UInt8[np.ndarray, "B 8"]]:
    """Scales and minima of the eight groups of a Q4_K block: four have their bytes' low six bits, the others the four
    bits of a third set of bytes and the two that are left above."""
    low, high, rest = (blocks[:, 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6) << 4], axis=1)
    minima = np.concatenate([high & 63, (rest >> 4) | (high >> 6) << 4], axis=1)
    return scales, minima


def _of_six_bits(which: int) -> Part:
    """Scales (0) or minima (1), which are taken off, times the block's own scale of these."""
    whole = _as("<f2", 2 * which, 2 * which + 2)
    sign = np.float32(-1 if which else 1)
    return lambda blocks: sign * whole(blocks).astype(np.float32) * _six_bits(blocks)[which].astype(np.float32)


BLOCK_TYPES: Final[Mapping[Kind, BlockType]] = {
    Kind.Q8_0: BlockType("int8", 32, {"values": _as("i1", 2, 34), "scale": _as("<f2", 0, 2)}),
    Kind.Q4_0: BlockType("int4", 32, {"values": _halves(2, 18), "scale": _as("<f2", 0, 2)}),
    Kind.Q4_1: BlockType(
        "uint4",
        32,
        {"values": _halves(4, 20), "scale": _as("<f2", 0, 2), "minimum": _as("<f2", 2, 4)},
        minima="float16",
    ),
    Kind.Q4_K: BlockType(
        "uint4",
        32,
        {"values": _halves(16, 144, 32), "scale": _of_six_bits(0), "minimum": _of_six_bits(1)},
        "float32",
        "float32",
    ),
    Kind.MXFP4: BlockType("float4_e2m1fn", 32, {"values": _halves(1, 17), "scale": _bytes(0, 1)}, "uint8"),
}
"""The types whose blocks products are computed with."""


def _width(kind: Kind, part: str) -> int:
    """How much is held of one block."""
    nbytes = gguf.GGML_QUANT_SIZES[kind][1]
    return BLOCK_TYPES[kind].parts[part](np.zeros((1, nbytes), np.uint8)).shape[1]


class PartOfFile:
    """Some tensors of a file, of one type, of which every block stands for what Quantized calls `part`."""

    def __init__(self, file: GGUFFile, names: Iterable[str], part: str) -> None:
        self.path, self.metadata = file.path, file.metadata
        self._file, self._part = file, part
        self.tensors: dict[str, GGUFTensor] = {}
        for name in names:
            tensor = file.tensors[name]
            *rows, width = tensor.shape
            blocks = width // gguf.GGML_QUANT_SIZES[tensor.type][0]
            self.tensors[name] = replace(tensor, shape=(*rows, blocks * _width(tensor.type, part)))

    def read_rows(self, name: str, start: int, stop: int, within: Box = (), *, expert: int | None = None) -> np.ndarray:
        """As GGUFFile has it."""
        box, (first, last) = self._blocks(name, within, expert)
        kind = self.tensors[name].type
        raw = self._file.read_bytes(name, start, stop, box, expert=expert, hold=True)
        found = BLOCK_TYPES[kind].parts[self._part](raw.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1]))
        shape = (stop - start, *(high - low for low, high in box[:-1]), -1)
        return found.reshape(shape)[..., first:last]

    def runs(self, name: str, start: int, stop: int, within: Box = (), *, expert: int | None = None) -> Runs:
        """As GGUFFile has it."""
        return self._file.runs(name, start, stop, self._blocks(name, within, expert)[0], expert=expert)

    def _blocks(self, name: str, within: Box, expert: int | None) -> tuple[Box, Span]:
        """Bounds in the file's numbers, whole blocks of them, and what is wanted of these."""
        tensor = self.tensors[name]
        *rows, (first, last) = within or whole(tensor.shape[1 if expert is None else 2 :])
        block, size = gguf.GGML_QUANT_SIZES[tensor.type][0], _width(tensor.type, self._part)
        low, high = first // size, -(-last // size)
        return (*rows, (low * block, high * block)), (first - low * size, last - low * size)
