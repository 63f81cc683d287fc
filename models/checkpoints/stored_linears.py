"""Matrices that a checkpoint stores as small numbers and scales, presented as the floating-point tensors that they
stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from ..errors import CorruptCheckpointError, MissingTensorError, ShapeMismatchError
from .base import NamedTensors, TensorInfo
from .byte_files import Location
from .runs import Box, Runs, whole

type Span = tuple[int, int]


@runtime_checkable
class StoredLinear(Protocol):
    """A matrix [N, K] out of several stored tensors."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that are used up."""
        ...

    @property
    def kind(self) -> str:
        """For people."""
        ...

    def read(self, stored: NamedTensors, rows: Span, columns: Span) -> Float32[np.ndarray, "R C"]: ...

    def boxes(self, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        """What `read` reads of which stored tensors."""
        ...


class LinearTensors:
    """Tensors of a folder among which are stored matrices.

    Args:
        stored: as the files have them.
        linears: what stands for a tensor of this name.
        ignored: further stored tensors that say nothing.
    """

    def __init__(
        self, stored: NamedTensors, linears: Mapping[str, StoredLinear], ignored: frozenset[str] = frozenset()
    ) -> None:
        self.stored, self.linears = stored, linears
        used = {part for linear in linears.values() for part in linear.parts} | ignored
        infos = {name: info for name, info in stored.infos.items() if name not in used}
        for name, linear in linears.items():
            infos[name] = TensorInfo(name, linear.shape, linear.kind, stored.infos[linear.parts[0]].file)
        self._infos = infos

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def local(self) -> bool:
        return self.stored.local

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        linear = self.linears.get(name)
        if linear is None:
            return self.stored.read_rows(name, start, stop, within)
        (columns,) = within or whole(linear.shape[1:])
        return linear.read(self.stored, (start, stop), columns)

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        linear = self.linears.get(name)
        if linear is None:
            return self.stored.planned(name, start, stop, within)
        (columns,) = within or whole(linear.shape[1:])
        runs: list[Runs] = []
        for part, ((first, last), *rest) in linear.boxes((start, stop), columns):
            runs += self.stored.planned(part, first, last, tuple(rest))
        return runs


@dataclass(frozen=True)
class Found:
    """A stored tensor that a format asks for by name; checks what is there."""

    infos: Mapping[str, TensorInfo]
    where: Location

    def tensor(self, name: str, types: tuple[str, ...]) -> TensorInfo:
        """The tensor of this name.

        Raises:
            MissingTensorError, CorruptCheckpointError: it is not there, or of another type.
        """
        info = self.infos.get(name)
        if info is None:
            raise MissingTensorError(f"{self.where}: found no {name!r}, which belongs to a quantised weight; fetch it")
        if info.dtype not in types:
            raise CorruptCheckpointError(
                f"{info.file}: tensor {name!r}: found type {info.dtype}, expected {' or '.join(types)}"
            )
        return info

    def shaped(self, name: str, types: tuple[str, ...], shape: tuple[int, ...]) -> TensorInfo:
        """The same, of a known shape.

        Raises:
            ShapeMismatchError: it has another.
        """
        info = self.tensor(name, types)
        if info.shape != shape:
            raise ShapeMismatchError(
                f"{info.file}: tensor {name!r}: found shape {list(info.shape)}, expected {list(shape)}"
            )
        return info


def read_box(stored: NamedTensors, name: str, box: Box) -> Shaped[np.ndarray, "..."]:
    """A box of a stored tensor."""
    (first, last), *rest = box
    return stored.read_rows(name, first, last, tuple(rest))


def unpacked(words: Int32[np.ndarray, "*lead W"], bits: int) -> UInt8[np.ndarray, "*lead C"]:
    """The numbers without sign that words of 32 bits hold, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return numbers.astype(np.uint8).reshape(*words.shape[:-1], -1)


def cover(span: Span, size: int) -> Span:
    """The groups of `size` that hold a span."""
    return span[0] // size, -(-span[1] // size)
