"""Builds the decoder's leaves out of named tensors, a block of rows at a time, straight into their final buffers."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ...backends.base import PyTree
from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, unflatten, weight_specs
from ..errors import ExtraTensorError, MissingTensorError, ShapeMismatchError, UnsupportedQuantizationError
from ..families import family_named
from ..families.sources import TensorSource
from .base import Made, NamedTensors, OnBytes, Place, TensorInfo, first_device, loading_order
from .byte_files import MAX_WASTE, REQUEST_BYTES, ReadCount
from .pieces import Piece, pieces_of, tensor_shape
from .region import Entry
from .runs import Box, Runs, coalesced, cut, volume, whole
from .shards import aligned_empty, groups_of, place_leaf, relative

BLOCK_BYTES = 8 * 2**20  # of float32: small against any model, large against the cost of a read
STAGED = 3  # times a block: as it came, unpacked, in order
_MOMENT = 0.001  # seconds
REMOTE_BLOCK_BYTES = 128 * 2**20  # the same for what is far away: several requests at a time

type Keep = Callable[[WeightSpec, TensorSource, Place], PyTree | None]
"""A leaf out of what is stored for it, such as a quantised one; None where it is made of the tensors' values."""

HARMLESS = (
    r".*rotary_emb\.inv_freq",  # recomputed from the configuration
    r".*self_attn\.(masked_)?bias",  # causal masks that old exports kept
)
"""Tensors that a checkpoint may hold though nothing needs them; families add their own."""


def load_named(
    tensors: NamedTensors,
    config: ModelConfig,
    *,
    dtype: DTypeLike,
    source: str,
    place: Place | None = None,
    made: Made | None = None,
    keep: Keep | None = None,
    progress: OnBytes | None = None,
) -> Weights:
    """All the weights of a configuration, from tensors under Hugging Face names.

    Args:
        tensors: where to read.
        config: what to read.
        dtype: of the weights.
        source: file or folder, for errors.
        place: where each leaf lives; the first device by default. Each process reads the bytes of its own shards.
        made: what becomes of each leaf; itself by default.
        keep: makes some leaves of what is stored for them.
        progress: called with bytes of weights made and their sum.

    Raises:
        MissingTensorError, ExtraTensorError, ShapeMismatchError, UnsupportedQuantizationError: found before any
            tensor is read.
    """
    place = place or first_device
    plan = leaf_plans(tensors, config, dtype=dtype, source=source)
    total = sum(prod(leaf.spec.shape) * leaf.spec.dtype.itemsize for leaf in plan)
    done = 0
    plan = {leaf.spec.path: leaf for leaf in plan}
    flat: dict[str, PyTree] = dict.fromkeys(plan)
    for spec in loading_order(leaf.spec for leaf in plan.values()):
        leaf = plan[spec.path]
        kept = None if keep is None else keep(leaf.spec, leaf.pieces[0].source, place)
        if kept is None:
            if made is not None:
                _let_go()
            placed = place_leaf(leaf.spec, place(leaf.spec), leaf.read, together=not tensors.local)
            placed.block_until_ready()  # or copies to an accelerator would pile up in host memory
            kept = placed if made is None else made(leaf.spec, placed)
        flat[leaf.spec.path] = kept
        done += prod(leaf.spec.shape) * leaf.spec.dtype.itemsize
        if progress is not None:
            progress(done, total)
    return unflatten(flat)


def _let_go() -> None:
    """Frees host memory behind leaves that were deleted. Whatever computed with one holds it a moment longer, and JAX
    gives it up when the next thing is put on a device, which would be the next leaf."""
    time.sleep(_MOMENT)
    jax.device_put(0.0)


def leaf_plans(tensors: NamedTensors, config: ModelConfig, *, dtype: DTypeLike, source: str) -> "list[LeafPlan]":
    """How each leaf is read, in the order of loading.

    Raises:
        MissingTensorError, ExtraTensorError, ShapeMismatchError, UnsupportedQuantizationError: the tensors do not fit.
    """
    specs = weight_specs(config, jnp.dtype(dtype))
    table = family_named(config.family).tensors(config)
    pieces = {path: list(pieces_of(spec, table[spec.key])) for path, spec in specs.items()}
    check([piece for group in pieces.values() for piece in group], tensors.infos, config, source)
    return [LeafPlan(tensors, spec, tuple(pieces[path])) for path, spec in specs.items()]


@dataclass(frozen=True)
class LeafPlan:
    """How a leaf is read: which rows, and what of them, of which tensors."""

    tensors: NamedTensors
    spec: WeightSpec
    pieces: tuple[Piece, ...]

    def read(self, boxes: list[Box]) -> list[np.ndarray]:
        """Some boxes of the leaf, each in a buffer of its own, read a block of rows at a time."""
        (made,) = read_alike([(self, boxes)])
        return made

    def cost(self, boxes: list[Box]) -> ReadCount:
        """What `read` takes, by arithmetic: of remote files, what their ranges become where they are read at once."""
        count = ReadCount()
        for reading in self.readings(boxes):
            for runs in reading.planned():
                ranges = None if self.tensors.local else coalesced(runs, MAX_WASTE)
                count.wanted += runs.nbytes
                count.read += runs.nbytes if ranges is None else sum(stop - start for start, stop in ranges)
                count.requests += runs.count if ranges is None else sum(1 for _ in cut(ranges, REQUEST_BYTES))
        return count

    def staging(self, boxes: list[Box]) -> int:
        """Most bytes that `read` holds of what it has read before that lies in the boxes' buffers."""
        return max((STAGED * reading.block_bytes for reading in self.readings(boxes)), default=0)

    def readings(self, boxes: list[Box]) -> "Iterator[Reading]":
        """What is read at once, in the order of the pieces."""
        entries: dict[tuple[int, ...], Entry] = {}
        lead = len(self.pieces[0].index)
        for piece in self.pieces:
            held = [
                i for i, box in enumerate(boxes)
                if all(start <= at < stop for at, (start, stop) in zip(piece.index, box, strict=False))
            ]  # fmt: skip
            info = self.tensors.infos[piece.name]
            for union, numbers in groups_of([boxes[i][lead:] for i in held]):
                if info.shape not in entries:
                    entries[info.shape] = Entry.of(piece, info)
                targets = [
                    (
                        i,
                        tuple(at - start for at, (start, _) in zip(piece.index, boxes[i], strict=False)),
                        boxes[i][lead:],
                    )
                    for i in (held[number] for number in numbers)
                ]
                yield Reading(self.tensors, piece, entries[info.shape], union, targets)


def read_alike(leaves: Sequence[tuple[LeafPlan, list[Box]]]) -> list[list[np.ndarray]]:
    """Boxes of leaves that are made of the same pieces, such as numbers and their scales: of all leaves the same rows
    of a piece, one leaf after the other, so that what lies together in a file can be fetched once."""
    made = [
        [aligned_empty(tuple(stop - start for start, stop in box), plan.spec.dtype) for box in boxes]
        for plan, boxes in leaves
    ]
    alike: dict[tuple[tuple[int, ...], int], list[tuple[Reading, list[np.ndarray]]]] = {}
    for (plan, boxes), buffers in zip(leaves, made, strict=True):
        for index, of_piece in groupby(plan.readings(boxes), key=lambda reading: reading.piece.index):
            for number, reading in enumerate(of_piece):
                alike.setdefault((index, number), []).append((reading, buffers))
    for together in alike.values():
        step = min(reading.step for reading, _ in together)
        first = min(reading.bounds[0][0] for reading, _ in together)
        last = max(reading.bounds[0][1] for reading, _ in together)
        for start in range(first, last, step):
            for reading, buffers in together:
                low, high = max(start, reading.bounds[0][0]), min(start + step, reading.bounds[0][1])
                if low < high:
                    reading.fill(low, high, [(buffers[i][within], bounds) for i, within, bounds in reading.targets])
    return made


@dataclass(frozen=True)
class Reading:
    """A box of a piece that is read at once.

    Args:
        tensors: where from.
        piece: of the leaf.
        entry: how its entries lie in the tensor.
        bounds: the box.
        targets: the shards that it fills: number, where the piece lies in the shard, and the shard's bounds on it.
    """

    tensors: NamedTensors
    piece: Piece
    entry: Entry
    bounds: Box
    targets: list[tuple[int, tuple[int, ...], Box]]

    def fill(self, start: int, stop: int, targets: list[tuple[np.ndarray, Box]]) -> None:
        """Read some entries into parts of shards, each with its bounds on the piece."""
        fine = self._fine()
        block = self._read(*self._rows(start, stop, fine), self.entry.box(fine)[1:])
        view = self.entry.view(block, stop - start, fine)
        for part, bounds in targets:
            low, high = max(start, bounds[0][0]), min(stop, bounds[0][1])
            if low < high:
                target = part[low - bounds[0][0] : high - bounds[0][0]]
                self._copy(target, view[low - start : high - start], bounds[1:], fine)

    @property
    def step(self) -> int:
        """Entries that are read at once."""
        return max(1, self.block_bytes // (4 * self.entry.rows * volume(self.entry.box(self._fine())[1:])))

    def planned(self) -> list[Runs]:
        """The byte ranges that the files are asked for."""
        fine = self._fine()
        return self.tensors.planned(self.piece.name, *self._rows(*self.bounds[0], fine), self.entry.box(fine)[1:])

    @property
    def block_bytes(self) -> int:
        """Most bytes of float32 that are read at once: one entry, or as many as make a block."""
        entry = 4 * self.entry.rows * volume(self.entry.box(self._fine())[1:])
        return max(entry, BLOCK_BYTES if self.tensors.local else REMOTE_BLOCK_BYTES)

    def _fine(self) -> Box:
        """The box on the axes of an entry; all of them where a shard cuts between them."""
        shape = self.piece.shape[1:]
        if any(self.entry.fine(shape, bounds[1:]) is None for _, _, bounds in self.targets):
            return whole(self.entry.shape)
        return self.entry.fine(shape, self.bounds[1:]) or whole(self.entry.shape)

    def _rows(self, start: int, stop: int, fine: Box) -> tuple[int, int]:
        low, high = self.entry.box(fine)[0]
        begin = self.piece.source.start
        return begin + start * self.entry.rows + low, begin + (stop - 1) * self.entry.rows + high

    def _read(self, start: int, stop: int, within: Box) -> np.ndarray:
        name = self.piece.name
        if within == whole(self.tensors.infos[name].shape[1:]):
            return self.tensors.read_rows(name, start, stop)
        return self.tensors.read_rows(name, start, stop, within)

    def _copy(self, target: np.ndarray, view: np.ndarray, bounds: Box, fine: Box) -> None:
        wanted = self.entry.fine(self.piece.shape[1:], bounds)
        with np.errstate(over="ignore", invalid="ignore"):  # a value too large for the dtype becomes inf, as in JAX
            if wanted is not None:
                found = view[:, *relative(wanted, fine)]
                target.reshape(found.shape, copy=False)[...] = found
            else:
                target[...] = view.reshape(len(view), *self.piece.shape[1:])[:, *(slice(*pair) for pair in bounds)]


def check(pieces: list[Piece], infos: Mapping[str, TensorInfo], config: ModelConfig, source: str) -> None:
    """Compare what is needed with what there is, before anything is read.

    Raises:
        MissingTensorError, ExtraTensorError, ShapeMismatchError, UnsupportedQuantizationError.
    """
    needed = dict.fromkeys(piece.name for piece in pieces)
    missing = [name for name in needed if name not in infos]
    if missing:
        raise MissingTensorError(
            f"{source}: found {len(infos)} tensors, expected also {_some(missing)}: family {config.family} with "
            f"{config.num_layers} layers needs them; check that the download is complete and that the configuration "
            "belongs to these weights"
        )
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.name, []).append(piece)
    for name, group in groups.items():
        info, expected = infos[name], tensor_shape(group)
        if info.shape != expected:
            raise ShapeMismatchError(
                f"{info.file}: tensor {name!r}: found shape {list(info.shape)}, expected {list(expected)}; check "
                "that the configuration belongs to these weights"
            )
        if not info.readable:
            raise UnsupportedQuantizationError(
                f"{info.file}: tensor {name!r}: found type {info.dtype}, expected floating point or a quantisation "
                "that can be undone; fetch the model in bf16, or as GGUF"
            )
    own = (rule.replace("{num_layers}", str(config.num_layers)) for rule in family_named(config.family).ignored)
    allowed = [*HARMLESS, *own]
    if config.tied:
        allowed.append(r"(language_model\.)?lm_head\.weight")
    extra = [name for name in infos if name not in needed and not any(re.fullmatch(rule, name) for rule in allowed)]
    if extra:
        raise ExtraTensorError(
            f"{source}: found {_some(extra)}, expected only the {len(needed)} tensors of family {config.family} with "
            f"{config.num_layers} layers; check that the configuration belongs to these weights"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
