"""Checkpoints of GPTQ and AWQ: whole numbers of a few bits in 32-bit words, with scales and zero points for groups.

Both store matrices transposed. GPTQ: `X.qweight` [K * bits / 32, N], words along K; `X.qzeros`
[groups, N * bits / 32], one less than the zero point in its first format; `X.scales` [groups, N]; `X.g_idx` [K], the
group of each input. AWQ: `X.qweight` [K, N / 8] and `X.qzeros` [groups, N / 8], four bits each, in which the eight
numbers of a word stand in the order of AWQ_ORDER; `X.scales` [groups, N].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Shaped, UInt8

from ..errors import UnsupportedQuantizationError
from .base import NamedTensors
from .byte_files import Location
from .kept import Form
from .runs import Box
from .stored_linears import Found, LinearTensors, Span, StoredLinear, cover, in_halves, read_box, unpacked

AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where column i of eight stands in its word."""
_TYPES: Final = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True)
class _ZeroPoints:
    """A matrix [N, K] of numbers less zero points, times scales, for groups of `group` columns; stored transposed."""

    base: str
    shape: tuple[int, ...]
    bits: int
    group: int

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"{self.base}.{name}" for name in ("qweight", "qzeros", "scales"))

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        groups = cover(columns, self.group)
        return [self._numbers_box(rows, columns), self._zeros_box(rows, groups), self._scales_box(rows, groups)]

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        values, zeros, scale = (read_box(stored, *each) for each in self.boxes(rows, columns))
        which = np.arange(*columns) // self.group - columns[0] // self.group
        return self._meant(self._numbers(values, rows, columns), self._zeros(zeros, rows), scale, which)

    def form(self, stored: NamedTensors) -> Form | str:
        """See KeptLinear."""
        if self.bits not in (4, 8) or self.shape[1] % 2:
            return f"numbers of {self.bits} bits in rows of {self.shape[1]}"
        if self.shape[1] % self.group:
            return f"groups of {self.group} in rows of {self.shape[1]}"
        scales = _TYPES[stored.infos[f"{self.base}.scales"].dtype]
        return Form(f"uint{self.bits}", self.shape[1] // self.group, scales, "float32")

    def part_boxes(self, part: str, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        """See KeptLinear."""
        if part == "values":
            return [self._numbers_box(rows, self._columns(columns))]
        scale = self._scales_box(rows, columns)
        return [scale] if part == "scale" else [scale, self._zeros_box(rows, columns)]

    def part(self, stored: NamedTensors, part: str, rows: Span, columns: Span) -> Shaped[np.ndarray, "R C"]:
        """See KeptLinear. Zero points times fp16 scales are exact in fp32, and so is what is made of them."""
        found, *zeros = (read_box(stored, *each) for each in self.part_boxes(part, rows, columns))
        if part == "values":
            numbers = self._numbers(found, rows, self._columns(columns))
            return in_halves(numbers) if self.bits == 4 else numbers
        if part == "scale":
            return found.T
        return -self._zeros(zeros[0], rows).astype(np.float32) * found.T.astype(np.float32)

    def _columns(self, held: Span) -> Span:
        """Columns of the matrix, by what is held of a row."""
        return (2 * held[0], 2 * held[1]) if self.bits == 4 else held

    def _meant(
        self,
        numbers: UInt8[np.ndarray, "R C"],
        zeros: UInt8[np.ndarray, "R groups"],
        scale: Float[np.ndarray, "groups R"],
        which: Int[np.ndarray, "C"],
    ) -> Float32[np.ndarray, "R C"]:
        return (numbers.astype(np.float32) - zeros.astype(np.float32)[:, which]) * scale.T.astype(np.float32)[:, which]

    def _scales_box(self, rows: Span, groups: Span) -> tuple[str, Box]:
        return f"{self.base}.scales", (groups, rows)

    def _zeros_box(self, rows: Span, groups: Span) -> tuple[str, Box]:
        return f"{self.base}.qzeros", (groups, cover(rows, 32 // self.bits))

    def _numbers_box(self, rows: Span, columns: Span) -> tuple[str, Box]:
        raise NotImplementedError

    def _numbers(self, words: Int32[np.ndarray, "..."], rows: Span, columns: Span) -> UInt8[np.ndarray, "R C"]:
        raise NotImplementedError

    def _zeros(self, words: Int32[np.ndarray, "..."], rows: Span) -> UInt8[np.ndarray, "R groups"]:
        raise NotImplementedError


@dataclass(frozen=True)
class GptqLinear(_ZeroPoints):
    """Words along K; `above` is what is added to stored zero points, `places` whether columns name their groups."""

    above: int
    places: bool

    @property
    def kind(self) -> str:
        return f"GPTQ, {self.bits} bits"

    @property
    def parts(self) -> tuple[str, ...]:
        return (*super().parts, self._places) if self.places else super().parts

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        if not self.places:
            return super().boxes(rows, columns)
        groups = (0, -(-self.shape[1] // self.group))
        boxes = [self._numbers_box(rows, columns), self._zeros_box(rows, groups), self._scales_box(rows, groups)]
        return [*boxes, (self._places, (columns,))]

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        if not self.places:
            return super().read(stored, rows, columns)
        values, zeros, scale, which = (read_box(stored, *each) for each in self.boxes(rows, columns))
        return self._meant(self._numbers(values, rows, columns), self._zeros(zeros, rows), scale, which)

    def form(self, stored: NamedTensors) -> Form | str:
        """See KeptLinear. Writers name the groups of columns where these are in order, too."""
        if self.places:
            which = read_box(stored, self._places, ((0, self.shape[1]),))
            if not np.array_equal(which, np.arange(self.shape[1]) // self.group):
                return "groups of columns in an order of their own (desc_act)"
        return super().form(stored)

    @property
    def _places(self) -> str:
        return f"{self.base}.g_idx"

    def _numbers_box(self, rows: Span, columns: Span) -> tuple[str, Box]:
        return f"{self.base}.qweight", (cover(columns, 32 // self.bits), rows)

    def _numbers(self, words: Int32[np.ndarray, "..."], rows: Span, columns: Span) -> UInt8[np.ndarray, "R C"]:
        first = columns[0] % (32 // self.bits)
        return unpacked(np.ascontiguousarray(words.T), self.bits)[:, first : first + columns[1] - columns[0]]

    def _zeros(self, words: Int32[np.ndarray, "..."], rows: Span) -> UInt8[np.ndarray, "R groups"]:
        first = rows[0] % (32 // self.bits)
        zeros = unpacked(words, self.bits)[:, first : first + rows[1] - rows[0]].T
        return (zeros + np.uint8(self.above)) & np.uint8(2**self.bits - 1)


@dataclass(frozen=True)
class AwqLinear(_ZeroPoints):
    """Words along N."""

    @property
    def kind(self) -> str:
        return "AWQ, 4 bits"

    def _numbers_box(self, rows: Span, columns: Span) -> tuple[str, Box]:
        return f"{self.base}.qweight", (columns, cover(rows, 8))

    def _numbers(self, words: Int32[np.ndarray, "..."], rows: Span, columns: Span) -> UInt8[np.ndarray, "R C"]:
        return self._zeros(words, rows)

    def _zeros(self, words: Int32[np.ndarray, "..."], rows: Span) -> UInt8[np.ndarray, "R groups"]:
        return _in_order(words)[:, rows[0] % 8 :][:, : rows[1] - rows[0]].T


def _in_order(words: np.ndarray) -> np.ndarray:
    numbers = unpacked(words, 4)
    return numbers.reshape(*words.shape, 8)[..., AWQ_ORDER].reshape(numbers.shape)


def gptq_linears(stored: NamedTensors, config: Mapping[str, Any], where: Location) -> LinearTensors:
    """The tensors of a checkpoint whose quantization_config says gptq or awq.

    Raises:
        UnsupportedQuantizationError: numbers of a width, or a layout, that is not read here.
        CheckpointError: a part of a weight is missing or of another shape.
    """
    awq = config.get("quant_method") == "awq"
    bits, group = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    if bits not in ((4,) if awq else (2, 4, 8)):
        raise UnsupportedQuantizationError(
            f"{where}: quantization_config.bits: found {bits!r}, expected {'4' if awq else '2, 4 or 8'}"
        )
    if not isinstance(group, int) or group < -1 or not group:
        raise UnsupportedQuantizationError(
            f"{where}: quantization_config.group_size: found {group!r}, expected a number of weights, or -1 for all"
        )
    version = str(config.get("version", "gemm")).lower()
    if awq and version != "gemm":
        raise UnsupportedQuantizationError(f"{where}: quantization_config.version: found {version!r}, expected 'gemm'")
    above = 0 if awq or config.get("checkpoint_format") == "gptq_v2" else 1
    found, linears = Found(stored.infos, where), dict[str, StoredLinear]()
    for name in stored.infos:
        base = name.removesuffix(".qweight")
        if base == name:
            continue
        packed = found.tensor(name, ("I32",)).shape
        outputs, inputs = (packed[1] * 8, packed[0]) if awq else (packed[1], packed[0] * 32 // bits)
        size = inputs if group == -1 else group
        groups = -(-inputs // size)
        found.shaped(f"{base}.scales", tuple(_TYPES), (groups, outputs))
        found.shaped(f"{base}.qzeros", ("I32",), (groups, outputs * bits // 32))
        if awq:
            linears[f"{base}.weight"] = AwqLinear(base, (outputs, inputs), 4, size)
        else:
            places = f"{base}.g_idx" in stored.infos
            if places:
                found.shaped(f"{base}.g_idx", ("I32", "I64"), (inputs,))
            linears[f"{base}.weight"] = GptqLinear(base, (outputs, inputs), bits, size, above, places)
    # Some writers give every matrix a bias of zeros.
    biases = [name.removesuffix("weight") + "bias" for name in linears]
    there = [name for name in biases if name in stored.infos]
    zeros = len(there) == len(biases) and not any(
        stored.read_rows(name, 0, stored.infos[name].shape[0]).any() for name in there
    )
    return LinearTensors(stored, linears, frozenset(there) if zeros else frozenset())
