"""Checkpoints of the compressed-tensors library: int8, fp8 and packed whole numbers, as vLLM and llm-compressor use.

`X.weight` holds int8 or fp8 [N, K], or `X.weight_packed` 32-bit words [N, K * bits / 32] of numbers that have half
their range added; `X.weight_scale` [N, K / group], [N, 1] or [1]; `X.weight_zero_point` of whole numbers that are not
symmetric; `X.weight_g_idx` the group of each column where that is not its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Shaped

from ..errors import UnsupportedQuantizationError
from .base import NamedTensors
from .byte_files import Location
from .kept import Form
from .runs import Box, whole
from .stored_linears import Found, LinearTensors, Span, StoredLinear, cover, read_box, unpacked

FORMATS: Final = ("int-quantized", "float-quantized", "pack-quantized", "naive-quantized")
_FLOATS: Final = ("F32", "F16", "BF16")
_ZEROS: Final = ("I8", "I32", "I64", "F8_E4M3")
_SAYS_NOTHING: Final = ("input_scale", "output_scale", "k_scale", "v_scale", "q_scale", "weight_global_scale")


@dataclass(frozen=True)
class CompressedLinear:
    """A matrix in this format.

    Args:
        name: of the weight, X.weight.
        shape: [N, K].
        scale_shape: of weight_scale.
        packed: bits of a number in words, None where each is a byte.
        zeros, places: whether there are zero points, and groups of columns by number.
    """

    name: str
    shape: tuple[int, ...]
    scale_shape: tuple[int, ...]
    packed: int | None
    zeros: bool
    places: bool

    @property
    def kind(self) -> str:
        return "compressed-tensors"

    @property
    def numbers(self) -> str:
        return f"{self.name}_packed" if self.packed else self.name

    @property
    def parts(self) -> tuple[str, ...]:
        names = [self.numbers, f"{self.name}_scale"]
        names += [f"{self.name}_shape"] if self.packed else []
        names += [f"{self.name}_zero_point"] if self.zeros else []
        names += [f"{self.name}_g_idx"] if self.places else []
        return tuple(names)

    @property
    def group(self) -> int:
        return self.shape[1] // self.scale_shape[1] if len(self.scale_shape) == 2 else self.shape[1]

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        per_word = 32 // self.packed if self.packed else 1
        boxes: list[tuple[str, Box]] = [(self.numbers, (rows, cover(columns, per_word)))]
        if prod(self.scale_shape) == 1:
            boxes.append((f"{self.name}_scale", whole(self.scale_shape)))
            if self.zeros:
                boxes.append((f"{self.name}_zero_point", whole(self.scale_shape)))
        else:
            groups = (0, self.scale_shape[1]) if self.places else cover(columns, self.group)
            boxes.append((f"{self.name}_scale", (rows, groups)))
            if self.zeros and self.packed:  # packed along the rows
                boxes.append((f"{self.name}_zero_point", (cover(rows, per_word), groups)))
            elif self.zeros:
                boxes.append((f"{self.name}_zero_point", (rows, groups)))
        if self.places:
            boxes.append((f"{self.name}_g_idx", (columns,)))
        return boxes

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]:
        found = {name: read_box(stored, name, box) for name, box in self.boxes(rows, columns)}
        values = found[self.numbers]
        if self.packed:
            per_word = 32 // self.packed
            first = columns[0] % per_word
            values = unpacked(values, self.packed)[:, first : first + columns[1] - columns[0]]
            values = values.astype(np.float32) - 2 ** (self.packed - 1)
        values = values.astype(np.float32)
        scale = found[f"{self.name}_scale"].astype(np.float32)
        if scale.size == 1:
            if self.zeros:
                values -= found[f"{self.name}_zero_point"].astype(np.float32).reshape(())
            return values * scale.reshape(())
        if self.places:
            which = found[f"{self.name}_g_idx"].astype(np.int64)
        else:
            which = np.arange(*columns) // self.group - columns[0] // self.group
        if self.zeros:
            values -= self._zeros(found[f"{self.name}_zero_point"], rows)[:, which]
        return values * scale[:, which]

    def form(self, stored: NamedTensors) -> Form | str:
        """See KeptLinear."""
        if self.places:
            return "groups of columns in an order of their own"
        if len(self.scale_shape) != 2 or self.scale_shape[0] != self.shape[0]:
            return "one scale for all rows"
        if self.packed and self.shape[1] % (32 // self.packed):
            return "words that are not filled"
        kind = f"int{self.packed}"
        if not self.packed:
            kind = {"I8": "int8", "F8_E4M3": "float8_e4m3fn"}[stored.infos[self.numbers].dtype]
        return Form(kind, self.scale_shape[1], minima="float32" if self.zeros else None)

    def part_boxes(self, part: str, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        """See KeptLinear."""
        if part == "values":
            return [(self.numbers, (rows, cover(columns, 4) if self.packed else columns))]
        scale: tuple[str, Box] = (f"{self.name}_scale", (rows, columns))
        if part == "scale":
            return [scale]
        across = cover(rows, 32 // self.packed) if self.packed else rows
        return [scale, (f"{self.name}_zero_point", (across, columns))]

    def part(self, stored: NamedTensors, part: str, rows: Span, columns: Span) -> Shaped[np.ndarray, "R C"]:
        """See KeptLinear. Four bits lie in words as they are to lie in bytes."""
        found, *zeros = (read_box(stored, *each) for each in self.part_boxes(part, rows, columns))
        if part == "minimum":
            return -self._zeros(zeros[0], rows) * found.astype(np.float32)
        if part == "scale" or not self.packed:
            return found
        held = np.ascontiguousarray(found).view(np.uint8)[:, columns[0] % 4 :][:, : columns[1] - columns[0]]
        return held if self.packed == 4 else (held ^ 128).view(np.int8)

    def _zeros(self, zeros: np.ndarray, rows: Span) -> Float32[np.ndarray, "R groups"]:
        if not self.packed:
            return zeros.astype(np.float32)
        per_word = 32 // self.packed
        spread = unpacked(np.ascontiguousarray(zeros.T), self.packed).T
        first = rows[0] % per_word
        return spread[first : first + rows[1] - rows[0]].astype(np.float32) - 2 ** (self.packed - 1)


def compressed_linears(stored: NamedTensors, config: Mapping[str, Any], where: Location) -> LinearTensors:
    """The tensors of a checkpoint whose quantization_config says compressed-tensors.

    Raises:
        UnsupportedQuantizationError: a format that is not read here.
        CheckpointError: a part of a weight is missing or of another shape.
    """
    form = config.get("format", "dense")
    if form == "dense":
        return LinearTensors(stored, {})
    if form not in FORMATS:
        raise UnsupportedQuantizationError(
            f"{where}: quantization_config.format: found {str(form)[:40]!r}, expected one of {', '.join(FORMATS)}"
        )
    found, linears = Found(stored.infos, where), dict[str, StoredLinear]()
    bits = _bits(config, where)
    for name in stored.infos:
        base = name.removesuffix("_packed")
        if name.endswith(".weight_packed"):
            found.shaped(f"{base}_shape", ("I32", "I64"), (2,))
            shape = tuple(read_box(stored, f"{base}_shape", ((0, 2),)).tolist())
            found.shaped(name, ("I32",), (shape[0], -(-shape[1] * bits // 32)))
            linears[base] = _linear(found, base, shape, bits)
        elif name.endswith(".weight") and f"{name}_scale" in stored.infos:
            info = found.tensor(name, ("I8", "F8_E4M3"))
            linears[name] = _linear(found, name, info.shape, None)
    ignored = (name for name in stored.infos if name.rpartition(".")[2] in _SAYS_NOTHING)
    return LinearTensors(stored, linears, frozenset(ignored))


def _linear(found: Found, name: str, shape: tuple[int, ...], packed: int | None) -> CompressedLinear:
    scale = found.tensor(f"{name}_scale", _FLOATS)
    if prod(scale.shape) != 1:
        groups = scale.shape[1] if len(scale.shape) == 2 and scale.shape[1] else 0
        if not groups or shape[1] % groups or scale.shape != (shape[0], groups):
            raise UnsupportedQuantizationError(
                f"{scale.file}: tensor {scale.name!r}: found shape {list(scale.shape)} for a weight of {list(shape)}, "
                "expected a scale for each row, or for each of equal groups in it"
            )
    zeros, places = f"{name}_zero_point" in found.infos, f"{name}_g_idx" in found.infos
    if zeros and packed and prod(scale.shape) != 1:
        found.shaped(f"{name}_zero_point", ("I32",), (-(-shape[0] * packed // 32), scale.shape[1]))
    elif zeros:
        found.shaped(f"{name}_zero_point", _ZEROS, scale.shape)
    if places:
        found.shaped(f"{name}_g_idx", ("I32", "I64"), shape[1:])
    return CompressedLinear(name, shape, scale.shape, packed, zeros, places)


def _bits(config: Mapping[str, Any], where: Location) -> int:
    """Bits of packed numbers: all groups of weights agree."""
    groups = config.get("config_groups")
    every = groups.values() if isinstance(groups, dict) else ()
    weights = [group.get("weights") for group in every if isinstance(group, dict)]
    bits: set[Any] = {entry.get("num_bits") for entry in weights if isinstance(entry, dict)}
    if len(bits) != 1 or not bits <= {4, 8}:
        raise UnsupportedQuantizationError(
            f"{where}: quantization_config.config_groups: found weights of {sorted(map(str, bits))} bits, expected 4 "
            "or 8"
        )
    return bits.pop()


def rounds_activations(config: Mapping[str, Any]) -> bool:
    """Whether a quantization_config asks for a scale for each token, found when it comes."""
    groups = config.get("config_groups")
    every = groups.values() if isinstance(groups, dict) else ()
    inputs = [group.get("input_activations") for group in every if isinstance(group, dict)]
    tokens = {"dynamic": True, "strategy": "token"}
    return bool(inputs) and all(isinstance(entry, dict) and tokens.items() <= entry.items() for entry in inputs)
