"""What a device holds under a layout, in bytes: arithmetic on the layout and the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..backends.quantized import Rounding
from ..models.config import ModelConfig
from ..models.decoder import weight_specs
from .arrange import arranged, kv_copies, rounded
from .layout import Layout
from .stages import Stages


@dataclass(frozen=True)
class Footprint:
    """Bytes of one device.

    Args:
        weights: its part, with copies and padding.
        kv_copies: the part of `weights` that is there because KV heads are held more than once.
        padding: the part of `weights` that fills up the vocabulary.
        cache_token: its part of the keys and values of one token in every layer.
    """

    weights: int
    kv_copies: int
    padding: int
    cache_token: int


def footprint(
    config: ModelConfig,
    layout: Layout,
    dtype: DTypeLike,
    kv_dtype: DTypeLike | None = None,
    *,
    roundings: Mapping[str, Rounding] | None = None,
    lanes: int = 1,
) -> Footprint:
    """What a device of a layout that check_layout has accepted holds.

    Args:
        roundings: of the weights that are held as small numbers, by their paths.
        lanes: as cache_numbers has them.
    """
    leaves = arranged(config, layout, dtype)
    specs = weight_specs(config, dtype)
    weights = copied = padded = 0
    for path, held in rounded(leaves, roundings or {}).items():
        leaf, num_bytes = leaves[path], sum(each.num_bytes for each in jax.tree.leaves(held))
        own = num_bytes * prod(specs[path].shape) // prod(leaf.shape)
        weights += num_bytes
        copied += num_bytes - own if leaf.copies > 1 else 0
        padded += num_bytes - own if leaf.copies == 1 else 0
    return Footprint(
        weights=weights,
        kv_copies=copied,
        padding=padded,
        cache_token=jnp.dtype(kv_dtype or dtype).itemsize * sum(cache_numbers(config, layout, lanes=lanes).values()),
    )


def cache_scales(config: ModelConfig, layout: Layout) -> int:
    """The scales that a device holds of one position where a cache of 8-bit numbers has them for each token, as all but
    the CPU's do: of keys and of values in each layer."""
    return 2 * sum(Stages(config, layout.parts("layers")).layers_held) // layout.parts("context")


def cache_numbers(config: ModelConfig, layout: Layout, *, lanes: int = 1) -> dict[int | None, int]:
    """The numbers of keys and values that a device holds of one position, by the window of their layers (None: they
    see everything).

    Args:
        lanes: the keys of a device's heads, side by side, fill up multiples of so many numbers, and so do the values.
    """
    layers_held = Stages(config, layout.parts("layers")).layers_held
    found: dict[int | None, int] = {}
    for layers, group in zip(layers_held, config.cache_groups, strict=True):
        heads = group.num_kv_heads * kv_copies(group.num_kv_heads, layout)
        width = -(-heads * group.head_dim // layout.parts("cache_heads") // lanes) * lanes
        found[group.window] = found.get(group.window, 0) + 2 * layers * width // layout.parts("context")
    return found
