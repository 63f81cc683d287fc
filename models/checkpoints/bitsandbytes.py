"""Checkpoints of bitsandbytes: int8 with a scale for each row, and 4-bit numbers by a table in blocks.

int8: `X.weight` I8 [N, K] and `X.SCB` [N], the largest number of each row. Four bits: `X.weight` U8 of all numbers in
order, the even one in the high half of a byte; `X.weight.quant_map` [16]; `X.weight.absmax`, one for each block, in
fp32 or (nested) as bytes with a table, scales and an offset of their own; `X.weight.quant_state.bitsandbytes__*` JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Shaped

from ...backends.quantized import TABLES
from ..errors import CorruptCheckpointError
from .base import NamedTensors
from .byte_files import Location
from .kept import Form
from .runs import Box
from .stored_linears import Found, LinearTensors, Span, StoredLinear, cover, read_box

_STATE: Final = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Int8Linear:
    """A matrix [N, K] of int8."""

    base: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        return "bitsandbytes int8"

    @property
    def parts(self) -> tuple[str, ...]:
        return f"{self.base}.weight", f"{self.base}.SCB"

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        return [(f"{self.base}.weight", (rows, columns)), (f"{self.base}.SCB", (rows,))]

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        values, largest = (read_box(stored, *each) for each in self.boxes(rows, columns))
        return values.astype(np.float32) * _scales(largest)

    def form(self, stored: NamedTensors) -> Form | str:
        """See KeptLinear."""
        return Form("int8", 1)

    def part_boxes(self, part: str, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        """See KeptLinear."""
        values, largest = self.boxes(rows, columns)
        return [values if part == "values" else largest]

    def part(self, stored: NamedTensors, part: str, rows: Span, columns: Span) -> Shaped[np.ndarray, "R C"]:
        """See KeptLinear."""
        (found,) = (read_box(stored, *each) for each in self.part_boxes(part, rows, columns))
        return found if part == "values" else _scales(found)


def _scales(largest: np.ndarray) -> Float32[np.ndarray, "R 1"]:
    return (largest.astype(np.float32) / np.float32(127))[:, None]


@dataclass(frozen=True)
class FourBitLinear:
    """A matrix [N, K] of nf4 or fp4 in blocks of so many numbers, whose scales may be bytes in blocks themselves."""

    name: str
    shape: tuple[int, ...]
    quant_type: str
    block: int
    nested_block: int | None
    offset: float
    state: str

    @property
    def kind(self) -> str:
        return f"bitsandbytes {self.quant_type}"

    @property
    def parts(self) -> tuple[str, ...]:
        nested = ("nested_absmax", "nested_quant_map") if self.nested_block else ()
        return (self.name, *(f"{self.name}.{part}" for part in ("absmax", "quant_map", *nested)), self.state)

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        flat = rows[0] * self.shape[1], rows[1] * self.shape[1]
        numbers = (self.name, (cover(flat, 2), (0, 1)))
        return [numbers, (self._table, ((0, 16),)), *self._scale_boxes(cover(flat, self.block))]

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        packed, table, *scales = (read_box(stored, *each) for each in self.boxes(rows, columns))
        first, count = rows[0] * self.shape[1], (rows[1] - rows[0]) * self.shape[1]
        blocks = np.arange(first, first + count) // self.block
        flat = packed.reshape(-1)
        numbers = np.stack([flat >> 4, flat & 15], axis=1).reshape(-1)[first % 2 :][:count]
        values = table.astype(np.float32)[numbers] * self._scales(int(blocks[0]), scales)[blocks - blocks[0]]
        return values.reshape(-1, self.shape[1])[:, slice(*columns)]

    def form(self, stored: NamedTensors) -> Form | str:
        """See KeptLinear."""
        table = TABLES.get(self.quant_type)
        found = read_box(stored, self._table, ((0, 16),))
        if table is None or not np.array_equal(found, np.asarray(table, np.float32)):
            return f"numbers of {self.quant_type} by a table of the checkpoint's own"
        if self.shape[1] % self.block or self.block % 2:
            return f"blocks of {self.block} in rows of {self.shape[1]}"
        return Form(self.quant_type, self.shape[1] // self.block)

    def part_boxes(self, part: str, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        """See KeptLinear. What lies in a row of the matrix lies in a row of what is stored flat."""
        if part == "values":
            half = self.shape[1] // 2
            return [(self.name, ((rows[0] * half, rows[1] * half), (0, 1)))]
        groups = self.shape[1] // self.block
        return self._scale_boxes((rows[0] * groups, rows[1] * groups))

    def part(self, stored: NamedTensors, part: str, rows: Span, columns: Span) -> Shaped[np.ndarray, "R C"]:
        """See KeptLinear. The even number of a byte goes into its low half."""
        found = [read_box(stored, *each) for each in self.part_boxes(part, rows, columns)]
        if part == "values":
            flat = found[0] >> 4 | found[0] << 4
        else:
            flat = self._scales(rows[0] * (self.shape[1] // self.block), found)
        return flat.reshape(rows[1] - rows[0], -1)[:, slice(*columns)]

    @property
    def _table(self) -> str:
        return f"{self.name}.quant_map"

    def _scale_boxes(self, blocks: Span) -> list[tuple[str, Box]]:
        boxes: list[tuple[str, Box]] = [(f"{self.name}.absmax", (blocks,))]
        if self.nested_block:
            boxes.append((f"{self.name}.nested_absmax", (cover(blocks, self.nested_block),)))
            boxes.append((f"{self.name}.nested_quant_map", ((0, 256),)))
        return boxes

    def _scales(self, first: int, found: Sequence[np.ndarray]) -> Float32[np.ndarray, "blocks"]:
        """Of blocks from `first` on, made of what lies in their boxes."""
        absmax, *nested = found
        if self.nested_block:
            scales, levels = nested
            which = (first + np.arange(len(absmax))) // self.nested_block - first // self.nested_block
            absmax = (levels[absmax] * scales[which]).astype(np.float32) + np.float32(self.offset)
        return absmax.astype(np.float32)


def bitsandbytes_linears(stored: NamedTensors, config: Mapping[str, Any], where: Location) -> LinearTensors:
    """The tensors of a checkpoint whose quantization_config says bitsandbytes.

    Raises:
        CheckpointError: a part of a weight is missing or damaged.
    """
    found, linears = Found(stored.infos, where), dict[str, StoredLinear]()
    for name in stored.infos:
        base = name.removesuffix(".SCB")
        if base != name:
            shape = found.tensor(f"{base}.weight", ("I8",)).shape
            found.shaped(name, ("F32",), shape[:1])
            linears[f"{base}.weight"] = Int8Linear(base, shape)
        elif _STATE in name:
            weight = name.partition(_STATE)[0]
            linears[weight] = _four_bits(stored, found, weight, name)
    ignored = (name for name in stored.infos if name.endswith(".weight_format"))
    return LinearTensors(stored, linears, frozenset(ignored))


def _four_bits(stored: NamedTensors, found: Found, weight: str, state: str) -> FourBitLinear:
    info = found.tensor(state, ("U8",))
    try:
        told = json.loads(stored.read_rows(state, 0, info.shape[0]).tobytes())
        shape, block = tuple(int(size) for size in told["shape"]), int(told["blocksize"])
        nested = int(told["nested_blocksize"]) if "nested_blocksize" in told else None
        offset = float(told.get("nested_offset", 0.0))
        quant_type = str(told["quant_type"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptCheckpointError(
            f"{info.file}: tensor {state!r}: found no description of a quantised weight ({error}); fetch it again"
        ) from error
    if len(shape) != 2 or min(*shape, block, nested or 1) < 1:
        raise CorruptCheckpointError(f"{info.file}: tensor {state!r}: found shape {list(shape)} and blocks of {block}")
    found.shaped(weight, ("U8",), (-(-prod(shape) // 2), 1))
    blocks = -(-prod(shape) // block)
    found.shaped(f"{weight}.absmax", ("U8",) if nested else ("F32",), (blocks,))
    found.shaped(f"{weight}.quant_map", ("F32",), (16,))
    if nested:
        found.shaped(f"{weight}.nested_absmax", ("F32",), (-(-blocks // nested),))
        found.shaped(f"{weight}.nested_quant_map", ("F32",), (256,))
    return FourBitLinear(weight, shape, quant_type, block, nested, offset, state)
