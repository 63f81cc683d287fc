"""Matrices that a checkpoint stores as small numbers and scales, presented as the floating-point tensors that they
stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from ...backends.quantized import Rounding
from ..errors import CorruptCheckpointError, MissingTensorError, ShapeMismatchError
from .base import NamedTensors, TensorInfo
from .byte_files import Location
from .kept import Form
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


@runtime_checkable
class KeptLinear(StoredLinear, Protocol):
    """One whose numbers can be held as they are."""

    def form(self, stored: NamedTensors) -> Form | str:
        """How, or why not after all."""
        ...

    def part_boxes(self, part: str, rows: Span, columns: Span) -> list[tuple[str, Box]]:
        """What `part` reads; columns count what is held of a row."""
        ...

    def part(self, stored: NamedTensors, part: str, rows: Span, columns: Span) -> Shaped[np.ndarray, "R C"]:
        """What Quantized calls so."""
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
        self._forms: dict[str, Form | str] = {}
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
        return _planned(self.stored, linear.boxes((start, stop), columns))

    def form(self, name: str) -> Form | str | None:
        """See StoredNumbers."""
        linear = self.linears.get(name)
        if linear is None:
            return None
        if name not in self._forms:  # whose groups some files tell
            kept = isinstance(linear, KeptLinear)
            self._forms[name] = linear.form(self.stored) if kept else f"no product takes {linear.kind}"
        return self._forms[name]

    def parts(self, form: Form, part: str) -> NamedTensors:
        """See StoredNumbers."""
        kept = {name: linear for name, linear in self.linears.items() if self.form(name) == form}
        return _LinearParts(self.stored, kept, form, part)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _LinearParts:
    """One part of matrices of one form, under the matrices' names."""

    stored: NamedTensors
    linears: Mapping[str, KeptLinear]
    form: Form
    which: str

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @cached_property
    def _infos(self) -> Mapping[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for name, linear in self.linears.items():
            rounding = Rounding(self.form.kind, (self.form.groups,), False, self.form.scales, self.form.minima)
            part = rounding.parts(linear.shape)[self.which]
            found[name] = TensorInfo(name, part.shape, part.dtype.name, self.stored.infos[linear.parts[0]].file)
        return found

    @property
    def local(self) -> bool:
        return self.stored.local

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        (columns,) = within or whole(self.infos[name].shape[1:])
        return self.linears[name].part(self.stored, self.which, (start, stop), columns)

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        (columns,) = within or whole(self.infos[name].shape[1:])
        return _planned(self.stored, self.linears[name].part_boxes(self.which, (start, stop), columns))


def _planned(stored: NamedTensors, boxes: list[tuple[str, Box]]) -> list[Runs]:
    return [runs for name, ((first, last), *rest) in boxes for runs in stored.planned(name, first, last, tuple(rest))]


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


def in_halves(numbers: UInt8[np.ndarray, "*lead C"]) -> UInt8[np.ndarray, "*lead C/2"]:
    """Numbers of four bits, two in a byte, the even one in its low half."""
    return numbers[..., ::2] | numbers[..., 1::2] << 4


def cover(span: Span, size: int) -> Span:
    """The groups of `size` that hold a span."""
    return span[0] // size, -(-span[1] // size)
