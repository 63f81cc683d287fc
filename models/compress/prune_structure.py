"""Smaller models: heads, channels of feed-forward layers, or whole layers go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..config import LayerConfig, MlpConfig, ModelConfig
from ..decoder import Weights, weight_specs
from .calibrate import Inputs, Key
from .forward import read
from .layers import Entries, LayerRuns, places, restacked, stacked, unstacked
from .prune import Pruning, counted, kept_numbers
from .sparsegpt import block_costs, damped_inverse, refitted


def narrowed_config(config: ModelConfig, pruning: Pruning) -> ModelConfig:
    """What a model is with fewer heads or channels: the same number less in each layer."""

    def narrowed(number: int, layer: LayerConfig) -> LayerConfig:
        attention, mlp = layer.attention, layer.mlp
        gone, total = counted(pruning, config, number)
        per_group = attention.num_heads // attention.num_kv_heads
        match pruning.pattern:
            case "heads":
                heads = replace(attention, num_heads=(total - gone) * per_group, num_kv_heads=total - gone)
                return replace(layer, attention=heads)
            case "query-heads":
                return replace(
                    layer, attention=replace(attention, num_heads=attention.num_kv_heads * (per_group - gone))
                )
            case _:
                assert isinstance(mlp, MlpConfig)
                return replace(layer, mlp=replace(mlp, dim=total - gone))

    return replace(config, layers=tuple(narrowed(i, layer) for i, layer in enumerate(config.layers)))


def narrowed(
    weights: Weights, config: ModelConfig, pruning: Pruning, inputs: Mapping[Key, Inputs]
) -> tuple[Weights, ModelConfig]:
    """A model with fewer heads or channels.

    Args:
        weights: in floating point.
        pruning: of heads, query heads or channels, that check_pruning lets pass.
        inputs: what `calibrate` found; nothing for magnitude.
    """
    entries, where = unstacked(weights, config), places(config)
    axes = {spec.key: spec.axes[1:] for spec in weight_specs(config, jnp.float32).values() if spec.layers is not None}
    last = "mlp.down.weight" if pruning.pattern == "channels" else "attention.o.weight"
    for number in range(config.num_layers):
        own = {key: leaf for (key, layer), leaf in entries.items() if layer == number}
        matrix = own[last].astype(np.float32)
        flat = matrix.reshape(len(matrix), -1)
        seen = inputs.get(where[last, number])
        inverse = damped_inverse(seen.products) if seen is not None and pruning.method == "sparsegpt" else None
        kept = _kept(own, axes, flat, config, pruning, number, seen, inverse)
        for key, leaf in own.items():
            for axis, name in enumerate(axes[key]):
                if name in kept:
                    leaf = np.take(leaf, kept[name], axis=axis)
            entries[key, number] = leaf
        if inverse is not None:
            logical = "mlp" if pruning.pattern == "channels" else "heads"
            stays = np.zeros(flat.shape[1], np.bool_)
            stays.reshape(-1, flat.shape[1] // matrix.shape[1])[kept[logical]] = True
            made = refitted(flat, inverse, stays)
            entries[last, number] = made.reshape(entries[last, number].shape).astype(own[last].dtype)
    small = narrowed_config(config, pruning)
    return stacked(entries, small), small


def _kept(
    own: Mapping[str, np.ndarray],
    axes: Mapping[str, Sequence[str]],
    flat: Float[np.ndarray, "D inputs"],
    config: ModelConfig,
    pruning: Pruning,
    number: int,
    seen: Inputs | None,
    inverse: Float[np.ndarray, "inputs inputs"] | None,
) -> dict[str, Int[np.ndarray, "_"]]:
    """Which entries of each logical axis stay in a layer.

    Args:
        own: the layer's leaves.
        axes: their logical axes.
        flat: the matrix that projects back, to which every head and channel is some inputs.
        seen: that matrix' inputs, and of their products the `inverse` where it is wanted.
    """
    attention = config.layers[number].attention
    gone, total = counted(pruning, config, number)
    groups, width = attention.num_kv_heads, attention.head_dim
    per_group = attention.num_heads // groups
    # The smallest units that can go: channels, single heads, groups of them.
    size = {"channels": 1, "query-heads": width, "heads": width * per_group}[pruning.pattern]
    if pruning.method == "magnitude":
        scores = _squares(own, axes, {"channels": "mlp", "query-heads": "heads", "heads": "kv_heads"}[pruning.pattern])
        if pruning.pattern == "heads":
            scores = scores + _squares(own, axes, "heads").reshape(groups, per_group).sum(axis=1)
    elif pruning.method == "wanda":
        assert seen is not None
        single = np.square(flat).sum(axis=0) * np.diag(seen.products)
        scores = single.reshape(-1, size).sum(axis=1)
    else:
        assert inverse is not None
        scores = block_costs(flat, inverse, size)
    match pruning.pattern:
        case "channels":
            return {"mlp": kept_numbers(scores, gone)}
        case "heads":
            stay = kept_numbers(scores, gone)
            return {"kv_heads": stay, "heads": (stay[:, None] * per_group + np.arange(per_group)).reshape(-1)}
        case _:
            each = [kept_numbers(row, gone) for row in scores.reshape(groups, total)]
            return {"heads": np.concatenate([group * per_group + stay for group, stay in enumerate(each)])}


def _squares(own: Mapping[str, np.ndarray], axes: Mapping[str, Sequence[str]], logical: str) -> np.ndarray:
    """The sum of squares of everything that belongs to each entry of an axis."""
    total: float | np.ndarray = 0.0
    for key, leaf in own.items():
        if logical in axes[key]:
            others = tuple(i for i, name in enumerate(axes[key]) if name != logical)
            total = total + np.square(leaf.astype(np.float64)).sum(axis=others)
    return np.asarray(total)


def angular_distances(
    config: ModelConfig,
    weights: Weights,
    windows: Sequence[Sequence[int]],
    block: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[np.ndarray, "starts"]:
    """By what angle, as a share of a half turn, each run of `block` layers turns what comes into it.

    The mean over all tokens (Gromov et al., arXiv 2403.17887, take the last of each text).

    Args:
        weights: in the checkpoint's form, in floating point.
        windows: token ids, each read from nothing.
        block: neighbouring layers that would go together.
        progress: called with windows read and their number.
    """
    runs = LayerRuns.of(config)
    weights, total, count = restacked(weights, config, runs), np.zeros(config.num_layers - block + 1), 0
    for done, window in enumerate(windows):
        hidden = _hidden(runs, weights, jnp.asarray([window], jnp.int32))
        before, after = np.asarray(hidden[: len(total)]), np.asarray(hidden[block:])
        total += (np.arccos(np.clip(_cosine(before, after), -1, 1)) / np.pi).sum(axis=(1, 2))
        count += len(window)
        progress(done + 1, len(windows))
    return total / count


@partial(jax.jit, static_argnums=0)
def _hidden(config: LayerRuns, weights: Weights, tokens: Int[Array, "1 S"]) -> Float[Array, "L_and_1 1 S D"]:
    return read(config, weights, tokens, jnp.zeros_like(tokens)).hidden.astype(jnp.float32)


def _cosine(a: Float[np.ndarray, "*B D"], b: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B"]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)


def shortened(weights: Weights, config: ModelConfig, kept: Sequence[int]) -> tuple[Weights, ModelConfig]:
    """A model of some of its layers."""
    small, entries = shortened_config(config, kept), unstacked(weights, config)
    moved: Entries = {(key, None): leaf for (key, layer), leaf in entries.items() if layer is None}
    numbers = {old: new for new, old in enumerate(kept)}
    moved |= {(key, numbers[layer]): leaf for (key, layer), leaf in entries.items() if layer in numbers}
    return stacked(moved, small), small


def shortened_config(config: ModelConfig, kept: Sequence[int]) -> ModelConfig:
    """What a model of some of its layers is."""
    return replace(config, layers=tuple(config.layers[i] for i in kept))
