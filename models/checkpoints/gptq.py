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
from jaxtyping import Float32

from ..errors import UnsupportedQuantizationError
from .base import NamedTensors
from .byte_files import Location
from .runs import Box
from .stored_linears import Found, LinearTensors, Span, StoredLinear, cover, read_box, unpacked

AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where column i of eight stands in its word."""
_FLOATS: Final = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class GptqLinear:
    """A matrix [N, K]; `above` is what is added to stored zero points."""

    base: str
    shape: tuple[int, ...]
    bits: int
    group: int
    above: int
    places: bool

    @property
    def kind(self) -> str:
        return f"GPTQ, {self.bits} bits"

    @property
    def parts(self) -> tuple[str, ...]:
        names = ("qweight", "qzeros", "scales", "g_idx")
        return tuple(f"{self.base}.{name}" for name in names[: 4 if self.places else 3])

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        words = 32 // self.bits
        groups = (0, -(-self.shape[1] // self.group)) if self.places else cover(columns, self.group)
        boxes: list[tuple[str, Box]] = [
            (f"{self.base}.qweight", (cover(columns, words), rows)),
            (f"{self.base}.qzeros", (groups, cover(rows, words))),
            (f"{self.base}.scales", (groups, rows)),
        ]
        return [*boxes, (f"{self.base}.g_idx", (columns,))] if self.places else boxes

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        words, found = 32 // self.bits, [read_box(stored, *each) for each in self.boxes(rows, columns)]
        first, start = columns[0] % words, rows[0] % words
        values = unpacked(np.ascontiguousarray(found[0].T), self.bits)[:, first : first + columns[1] - columns[0]]
        zeros = unpacked(found[1], self.bits)[:, start : start + rows[1] - rows[0]]
        zeros = (zeros + self.above) & (2**self.bits - 1) if self.bits < 8 else zeros + np.uint8(self.above)
        if self.places:
            which = found[3].astype(np.int64)
        else:
            which = np.arange(*columns) // self.group - columns[0] // self.group
        scale = found[2].astype(np.float32)
        return (values.astype(np.float32) - zeros.T.astype(np.float32)[:, which]) * scale.T[:, which]


@dataclass(frozen=True)
class AwqLinear:
    """A matrix [N, K] of four bits."""

    base: str
    shape: tuple[int, ...]
    group: int

    @property
    def kind(self) -> str:
        return "AWQ, 4 bits"

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"{self.base}.{name}" for name in ("qweight", "qzeros", "scales"))

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        groups = cover(columns, self.group)
        return [
            (f"{self.base}.qweight", (columns, cover(rows, 8))),
            (f"{self.base}.qzeros", (groups, cover(rows, 8))),
            (f"{self.base}.scales", (groups, rows)),
        ]

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        values, zeros, scale = (read_box(stored, *each) for each in self.boxes(rows, columns))
        start = rows[0] % 8
        values, zeros = (_in_order(words)[:, start : start + rows[1] - rows[0]].T for words in (values, zeros))
        which = np.arange(*columns) // self.group - columns[0] // self.group
        return (values.astype(np.float32) - zeros.astype(np.float32)[:, which]) * scale.astype(np.float32).T[:, which]


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
        found.shaped(f"{base}.scales", _FLOATS, (groups, outputs))
        found.shaped(f"{base}.qzeros", ("I32",), (groups, outputs * bits // 32))
        if awq:
            linears[f"{base}.weight"] = AwqLinear(base, (outputs, inputs), size)
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
