"""MXFP4 as gpt-oss ships it: 4-bit floats in blocks of 32 with a shared power of two.

OCP Microscaling Formats v1.0, E2M1 elements with E8M0 scales. `NAME_blocks` [E, R, C/32, 16] holds two values a byte,
the low nibble first; `NAME_scales` [E, R, C/32] the exponents. `transformers` presents them as NAME [E, C, R].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Final

import ml_dtypes
import numpy as np
from jaxtyping import Float32, UInt8

from ..errors import MissingTensorError, ShapeMismatchError
from .base import NamedTensors, TensorInfo
from .kept import Form
from .runs import Box, Runs, whole
from .safetensors import SafetensorsTensors

VALUES: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_PAIRS: Final = np.stack(
    [np.concatenate([VALUES, -VALUES])[np.arange(256) & 15], np.concatenate([VALUES, -VALUES])[np.arange(256) >> 4]],
    axis=-1,
)  # both values of a byte


def dequantize(
    blocks: UInt8[np.ndarray, "*R groups 16"], scales: UInt8[np.ndarray, "*R groups"]
) -> Float32[np.ndarray, "*R C"]:
    """Values of blocks in float32, exact: C is 32 times the number of groups."""
    values = _PAIRS[blocks].reshape(*scales.shape, 32)
    np.ldexp(values, (scales.astype(np.int32) - 127)[..., None], out=values)
    return values.reshape(*scales.shape[:-1], -1)


class Mxfp4Tensors:
    """Tensors of a folder in which pairs of blocks and scales stand for one tensor each."""

    def __init__(self, stored: SafetensorsTensors) -> None:
        self._stored = stored
        self._infos = self._find()

    def form(self, name: str) -> Form | None:
        """See StoredNumbers."""
        if name in self._stored.infos:
            return None
        return Form("float4_e2m1fn", self._infos[name].shape[1] // 32, "uint8")

    def parts(self, form: Form, part: str) -> NamedTensors:
        """See StoredNumbers."""
        found = {name: info for name, info in self._infos.items() if self.form(name) == form}
        suffix, block = ("_blocks", (16,)) if part == "values" else ("_scales", ())
        return _Part(self._stored, found, suffix, block)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def _find(self) -> dict[str, TensorInfo]:
        infos: dict[str, TensorInfo] = {}
        for name, info in self._stored.infos.items():
            if name.endswith("_blocks"):
                infos[name.removesuffix("_blocks")] = self._pair(name.removesuffix("_blocks"))
            elif not name.endswith("_scales"):
                infos[name] = info
            elif name.removesuffix("_scales") + "_blocks" not in self._stored.infos:
                raise MissingTensorError(f"{info.file}: found {name!r} without its _blocks; fetch the model again")
        return infos

    def _pair(self, name: str) -> TensorInfo:
        blocks = self._stored.infos[f"{name}_blocks"]
        scales = self._stored.infos.get(f"{name}_scales")
        if scales is None:
            raise MissingTensorError(f"{blocks.file}: found {blocks.name!r} without its _scales; fetch the model again")
        if (
            (blocks.dtype, scales.dtype) != ("U8", "U8")
            or len(blocks.shape) != 4
            or blocks.shape != (*scales.shape, 16)
        ):
            raise ShapeMismatchError(
                f"{blocks.file}: tensor {blocks.name!r}: found {blocks.dtype} {list(blocks.shape)} with scales "
                f"{scales.dtype} {list(scales.shape)}, expected U8 [E, R, C/32, 16] and U8 [E, R, C/32]"
            )
        experts, rows, groups, _ = blocks.shape
        return TensorInfo(name, (experts, 32 * groups, rows), "MXFP4", blocks.file)

    @property
    def local(self) -> bool:
        return self._stored.local

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        if name in self._stored.infos:
            return self._stored.read_rows(name, start, stop, within)
        columns, blocks_within, (first, last) = self._stored_box(name, within)
        blocks = self._stored.read_rows(f"{name}_blocks", start, stop, (*blocks_within, (0, 16)))
        scales = self._stored.read_rows(f"{name}_scales", start, stop, blocks_within)
        # Every value fits bfloat16 exactly, so half the memory does.
        made = np.empty((*scales.shape[:-1], 32 * scales.shape[-1]), ml_dtypes.bfloat16)
        for i in range(len(made)):
            made[i] = dequantize(blocks[i], scales[i])
        return made[..., first - columns : last - columns].swapaxes(-1, -2)

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        if name in self._stored.infos:
            return self._stored.planned(name, start, stop, within)
        _, box, _ = self._stored_box(name, within)
        blocks = self._stored.planned(f"{name}_blocks", start, stop, (*box, (0, 16)))
        return blocks + self._stored.planned(f"{name}_scales", start, stop, box)

    def _stored_box(self, name: str, within: Box) -> tuple[int, Box, tuple[int, int]]:
        """The first column that is read, bounds on the stored rows and groups, and the columns that are wanted."""
        columns, rows = within or whole(self._infos[name].shape[1:])
        groups = (columns[0] // 32, -(-columns[1] // 32))
        return 32 * groups[0], (rows, groups), columns


@dataclass(frozen=True)
class _Part:
    """Bytes of blocks, or scales, as [E, C/32 * size, R].

    Args:
        stored: as the files have them.
        floats: the tensors that they stand for.
        suffix: of the stored tensors' names.
        block: shape of what is stored for 32 numbers.
    """

    stored: SafetensorsTensors
    floats: Mapping[str, TensorInfo]
    suffix: str
    block: tuple[int, ...]

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @cached_property
    def _infos(self) -> Mapping[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for name, info in self.floats.items():
            experts, inputs, rows = info.shape
            found[name] = TensorInfo(name, (experts, inputs // 32 * prod(self.block), rows), "U8", info.file)
        return found

    @property
    def local(self) -> bool:
        return self.stored.local

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        box, (first, last) = self._stored_box(name, within)
        found = self.stored.read_rows(name + self.suffix, start, stop, box)
        return found.reshape(*found.shape[:2], -1)[..., first:last].swapaxes(1, 2)

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        return self.stored.planned(name + self.suffix, start, stop, self._stored_box(name, within)[0])

    def _stored_box(self, name: str, within: Box) -> tuple[Box, tuple[int, int]]:
        """Bounds on the stored rows, groups and bytes, and what is wanted of the groups' bytes."""
        (first, last), rows = within or whole(self.infos[name].shape[1:])
        size = prod(self.block)
        groups = (first // size, -(-last // size))
        return (rows, groups, *whole(self.block)), (first - size * groups[0], last - size * groups[0])
