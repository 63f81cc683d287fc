"""Builds the decoder's leaves out of named tensors, a block of rows at a time, straight into their final buffers."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, unflatten, weight_specs
from ..errors import ExtraTensorError, MissingTensorError, ShapeMismatchError, UnsupportedQuantizationError
from ..families import family_named
from ..families.sources import TensorSource
from .base import NamedTensors, OnBytes, Place, TensorInfo, first_device

BLOCK_BYTES = 8 * 2**20  # of float32: small against any model, large against the cost of a read
ALIGNMENT = 64  # JAX on the CPU takes over numpy buffers aligned so, without a copy

HARMLESS = (
    r".*rotary_emb\.inv_freq",  # recomputed from the configuration
    r".*self_attn\.(masked_)?bias",  # causal masks that old exports kept
)
"""Tensors that a checkpoint may hold though nothing needs them; families add their own."""


@dataclass(frozen=True)
class Piece:
    """The part of a leaf that one named tensor fills: entries `index` of its leading axes (layer, expert)."""

    spec: WeightSpec
    source: TensorSource
    name: str
    index: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self.spec.shape[len(self.index) :]


def pieces_of(spec: WeightSpec, source: TensorSource) -> Iterator[Piece]:
    """Every named tensor that goes into a leaf."""
    layers = [None] if spec.layers is None else list(spec.layers)
    lead = 0 if spec.layers is None else 1
    experts = range(spec.shape[lead]) if "{expert}" in source.name else [None]
    for (i, layer), expert in product(enumerate(layers), experts):
        index = (() if layer is None else (i,)) + (() if expert is None else (expert,))
        yield Piece(spec, source, source.name.format(layer=layer, expert=expert), index)


def load_named(
    tensors: NamedTensors,
    config: ModelConfig,
    *,
    dtype: jnp.dtype | str | type,
    source: str,
    place: Place | None = None,
    progress: OnBytes | None = None,
) -> Weights:
    """All the weights of a configuration, from tensors under Hugging Face names.

    Args:
        tensors: where to read.
        config: what to read.
        dtype: of the weights.
        source: file or folder, for errors.
        place: where each leaf lives; the first device by default. Each process reads the rows of its own shards.
        progress: called with bytes of weights made and their sum.

    Raises:
        MissingTensorError, ExtraTensorError, ShapeMismatchError, UnsupportedQuantizationError: found before any
            tensor is read.
    """
    specs = weight_specs(config, jnp.dtype(dtype))
    table = family_named(config.family).tensors(config)
    plan = {path: list(pieces_of(spec, table[spec.key])) for path, spec in specs.items()}
    check([piece for pieces in plan.values() for piece in pieces], tensors.infos, config, source)
    place = place or first_device
    total = sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs.values())
    done = 0
    flat: dict[str, jax.Array] = {}
    for path, spec in specs.items():
        sharding = place(spec)
        by_index = {piece.index: piece for piece in plan[path]}
        made = jax.make_array_from_callback(spec.shape, sharding, _reader(tensors, spec, by_index))
        flat[path] = made.block_until_ready()  # or copies to an accelerator would pile up in host memory
        done += made.nbytes
        if progress is not None:
            progress(done, total)
    return unflatten(flat)


type _Index = tuple[slice, ...] | None


def _reader(
    tensors: NamedTensors, spec: WeightSpec, pieces: Mapping[tuple[int, ...], Piece]
) -> Callable[[_Index], np.ndarray]:
    """The callback that makes one shard of a leaf."""

    def read(index: _Index) -> np.ndarray:
        slices = index or (slice(None),) * len(spec.shape)
        bounds = [s.indices(n)[:2] for s, n in zip(slices, spec.shape, strict=True)]
        shard = aligned_empty(tuple(stop - start for start, stop in bounds), spec.dtype)
        lead = len(next(iter(pieces)))
        for entry in product(*(range(*pair) for pair in bounds[:lead])):
            part = shard[tuple(i - start for i, (start, _) in zip(entry, bounds[:lead], strict=True))]
            fill(part, tensors, pieces[entry], bounds[lead:])
        return shard

    return read


def fill(part: np.ndarray, tensors: NamedTensors, piece: Piece, bounds: list[tuple[int, int]]) -> None:
    """Read the rows of a piece that lie in `bounds` (start, stop for each axis of the piece) into `part`."""
    info = tensors.infos[piece.name]
    source, shape = piece.source, piece.shape
    inner = source_rows(source, info) // shape[0]
    step = max(1, BLOCK_BYTES // (4 * inner * prod(info.shape[1:])))
    first, last = bounds[0]
    whole = all(pair == (0, n) for pair, n in zip(bounds[1:], shape[1:], strict=True))
    for start in range(first, last, step):
        stop = min(last, start + step)
        block = tensors.read_rows(piece.name, source.start + start * inner, source.start + stop * inner)
        view = block if source.view is None else source.view(block)
        target = part[start - first : stop - first]
        with np.errstate(over="ignore", invalid="ignore"):  # a value too large for the dtype becomes inf, as in JAX
            if whole:
                target.reshape(view.shape, copy=False)[...] = view
            else:
                cut = tuple(slice(*pair) for pair in bounds[1:])
                target[...] = view.reshape(stop - start, *shape[1:])[:, *cut]


def aligned_empty(shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
    """An uninitialised array whose first byte lies on a multiple of ALIGNMENT."""
    nbytes = prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def source_rows(source: TensorSource, info: TensorInfo) -> int:
    """Rows of a tensor that belong to a source."""
    return info.shape[0] - source.start if source.rows is None else source.rows


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
    ends: dict[str, int] = {}
    for piece in pieces:
        info = infos[piece.name]
        check_shape(piece, info)
        if not info.readable:
            raise UnsupportedQuantizationError(
                f"{info.file}: tensor {info.name!r} is stored as {info.dtype}, expected a floating-point type; "
                "fetch the model in bf16, or as GGUF"
            )
        ends[piece.name] = max(ends.get(piece.name, 0), piece.source.start + source_rows(piece.source, info))
    for name, end in ends.items():
        if end != infos[name].shape[0]:
            raise _mismatch(infos[name], f"{end} rows", "the configuration describes parts of it that end there")
    allowed = [*HARMLESS, *family_named(config.family).ignored]
    if config.tied:
        allowed.append(r"(language_model\.)?lm_head\.weight")
    extra = [name for name in infos if name not in needed and not any(re.fullmatch(rule, name) for rule in allowed)]
    if extra:
        raise ExtraTensorError(
            f"{source}: found {_some(extra)}, expected only the {len(needed)} tensors of family {config.family} with "
            f"{config.num_layers} layers; check that the configuration belongs to these weights"
        )


def check_shape(piece: Piece, info: TensorInfo) -> None:
    """Raise ShapeMismatchError unless the tensor's dimensions are those of the piece, with neighbours merged."""
    source, shape = piece.source, piece.shape
    rows = source_rows(source, info) if info.shape else 0
    end = source.start + rows
    if not info.shape or rows <= 0 or end > info.shape[0]:
        raise _mismatch(info, f"at least {end if source.rows else source.start + shape[0]} rows", "")
    # A strided view costs no memory, whatever shape the file claims.
    stand_in = np.broadcast_to(np.zeros((), np.bool_), (rows, *info.shape[1:]))
    try:
        viewed = stand_in if source.view is None else source.view(stand_in)
    except (ValueError, IndexError):
        raise _mismatch(info, f"a tensor that can be read as {list(shape)}", "") from None
    if rows % shape[0] or not _merges(shape, viewed.shape):
        raise _mismatch(info, _expected(shape, viewed.shape), "neighbouring dimensions may be merged")


def _merges(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one of two shapes comes of the other by multiplying neighbours."""
    cuts = [{prod(shape[:i]) for i in range(len(shape) + 1)} for shape in (one, other)]
    return prod(one) == prod(other) and (cuts[0] <= cuts[1] or cuts[1] <= cuts[0])


def _expected(shape: tuple[int, ...], found: tuple[int, ...]) -> str:
    """The nearest shape that would have been accepted."""
    if len(found) == 2 and len(shape) == 3:
        options = [(shape[0] * shape[1], shape[2]), (shape[0], shape[1] * shape[2])]
        shape = max(options, key=lambda option: sum(a == b for a, b in zip(option, found, strict=True)))
    elif len(found) == 1:
        shape = (prod(shape),)
    return str(list(shape))


def _mismatch(info: TensorInfo, expected: str, detail: str) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"{info.file}: tensor {info.name!r}: found shape {list(info.shape)}, expected {expected}"
        f"{f' ({detail})' if detail else ''}; check that the configuration belongs to these weights"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
