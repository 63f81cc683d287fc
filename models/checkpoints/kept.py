"""Leaves of quantised checkpoints as they are stored: small numbers and scales, not the floats that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ...backends.quantized import Quantized, Rounding
from ..decoder import WeightSpec
from ..families.sources import TensorSource
from .assemble import LeafPlan
from .base import NamedTensors, Place, TensorInfo
from .compressed_tensors import CompressedLinear
from .pieces import Piece, pieces_of
from .runs import Box, Runs, whole
from .shards import place_leaf
from .stored_linears import LinearTensors


@dataclass(frozen=True)
class _Part:
    """One stored tensor of each matrix, under the matrix' name: its bytes or its scales.

    Args:
        stored: as the files have them.
        linears: the matrices.
        scales: whether it is the scales.
    """

    stored: NamedTensors
    linears: Mapping[str, CompressedLinear]
    scales: bool

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {name: self._info(name) for name in self.linears}

    @property
    def local(self) -> bool:
        return self.stored.local

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        linear = self.linears[name]
        (columns,) = within or whole(self._info(name).shape[1:])
        if self.scales:
            return self.stored.read_rows(f"{name}_scale", start, stop, (columns,)).astype(np.float32)
        if not linear.packed:
            return self.stored.read_rows(name, start, stop, (columns,))
        words = columns[0] // 4, -(-columns[1] // 4)
        read = np.ascontiguousarray(self.stored.read_rows(linear.numbers, start, stop, (words,))).view(np.uint8)
        numbers = read[:, columns[0] - 4 * words[0] : columns[1] - 4 * words[0]]
        return numbers if linear.packed == 4 else (numbers ^ 128).view(np.int8)

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        linear = self.linears[name]
        (columns,) = within or whole(self._info(name).shape[1:])
        if self.scales:
            return self.stored.planned(f"{name}_scale", start, stop, (columns,))
        if linear.packed:
            columns = columns[0] // 4, -(-columns[1] // 4)
        return self.stored.planned(linear.numbers, start, stop, (columns,))

    def _info(self, name: str) -> TensorInfo:
        linear = self.linears[name]
        file = self.stored.infos[linear.numbers].file
        if self.scales:
            return TensorInfo(name, linear.scale_shape, "F32", file)
        width = linear.shape[1] // 2 if linear.packed == 4 else linear.shape[1]
        return TensorInfo(name, (linear.shape[0], width), "I8", file)


@dataclass(frozen=True)
class Keeper:
    """Makes leaves of a checkpoint's own numbers where the backends multiply these as they are.

    Args:
        tensors: the checkpoint's.
        activations: whether activations are to be rounded too.
    """

    tensors: LinearTensors
    activations: bool

    def leaf(self, spec: WeightSpec, source: TensorSource, place: Place) -> Quantized | None:
        """The leaf; None where its numbers are stored otherwise, so that it has to be computed from what they mean."""
        found, rounding = self._linears(spec, source), self.rounding(spec, source)
        if found is None or rounding is None:
            return None
        width, scales = rounding.shapes(spec.shape)
        path, float32 = spec.path, jnp.dtype("float32")
        numbers = replace(spec, path=f"{path}.values", shape=width, dtype=rounding.stored)
        values = self._read(numbers, source, place, found, scales=False)
        each = replace(spec, path=f"{path}.scale", shape=scales, dtype=float32)
        return rounding.held(values, self._read(each, source, place, found, scales=True), spec.dtype)

    def rounding(self, spec: WeightSpec, source: TensorSource) -> Rounding | None:
        """What `leaf` makes of a leaf, before anything is read."""
        found = self._linears(spec, source)
        if found is None:
            return None
        linear = next(iter(found.values()))
        inner = _groups(spec.shape[len(spec.shape) - spec.contracted :], linear.scale_shape[1])
        return None if inner is None else Rounding(_kind(self.tensors, linear), inner, self.activations)

    def _linears(self, spec: WeightSpec, source: TensorSource) -> dict[str, CompressedLinear] | None:
        """The stored matrices of a leaf, all alike; None if there are others."""
        if not spec.contracted or source.view is not None:
            return None
        found: dict[str, CompressedLinear] = {}
        for name in {piece.name for piece in pieces_of(spec, source)}:
            linear = self.tensors.linears.get(name)
            if not isinstance(linear, CompressedLinear) or linear.zeros or linear.places:
                return None
            if len(linear.scale_shape) != 2 or linear.scale_shape[0] != linear.shape[0]:
                return None  # one scale for all
            if linear.packed and (linear.shape[1] % (32 // linear.packed) or spec.shape[-1] % (8 // linear.packed)):
                return None  # words that are not filled, or bytes between two axes
            found[name] = linear
        kinds = {(_kind(self.tensors, linear), linear.scale_shape[1]) for linear in found.values()}
        return found if len(kinds) == 1 else None

    def _read(
        self, spec: WeightSpec, source: TensorSource, place: Place, found: dict[str, CompressedLinear], *, scales: bool
    ) -> jax.Array:
        part = _Part(self.tensors.stored, found, scales)
        pieces: tuple[Piece, ...] = tuple(pieces_of(spec, source))
        return place_leaf(spec, place(spec), LeafPlan(part, spec, pieces).read, together=not part.local)


def _kind(tensors: LinearTensors, linear: CompressedLinear) -> str:
    if linear.packed:
        return {4: "int4", 8: "int8"}[linear.packed]
    return {"I8": "int8", "F8_E4M3": "float8_e4m3fn"}[tensors.stored.infos[linear.numbers].dtype]


def _groups(inner: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """How `count` groups of one row lie on the axes that are summed over; None where they cut between these."""
    if count == 1 or len(inner) == 1:
        return (1,) * (len(inner) - 1) + (count,)
    if len(inner) == 2 and count % inner[0] == 0:
        return inner[0], count // inner[0]
    if len(inner) == 2 and inner[0] % count == 0:
        return count, 1
    return None
