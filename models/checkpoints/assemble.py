"""Builds the decoder's leaves out of named tensors, a block of rows at a time, straight into their final buffers."""

import re
from collections.abc import Callable, Mapping
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, unflatten, weight_specs
from ..errors import ExtraTensorError, MissingTensorError, ShapeMismatchError, UnsupportedQuantizationError
from ..families import family_named
from .base import NamedTensors, OnBytes, Place, TensorInfo, first_device
from .pieces import Piece, pieces_of, tensor_shape

BLOCK_BYTES = 8 * 2**20  # of float32: small against any model, large against the cost of a read
ALIGNMENT = 64  # JAX on the CPU takes over numpy buffers aligned so, without a copy

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
    rows = info.shape[0] - source.start if source.rows is None else source.rows
    inner = rows // shape[0]
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
