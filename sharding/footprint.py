"""What a device holds under a layout, in bytes: arithmetic on the layout and the model."""

from dataclasses import dataclass
from math import prod

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..models.config import ModelConfig
from ..models.decoder import weight_specs
from .arrange import arranged, kv_copies
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


def footprint(config: ModelConfig, layout: Layout, dtype: DTypeLike, kv_dtype: DTypeLike | None = None) -> Footprint:
    """What a device of a layout that check_layout has accepted holds."""
    leaves = arranged(config, layout, dtype)
    specs = weight_specs(config, dtype)
    copied = padded = 0
    for path, leaf in leaves.items():
        own = leaf.num_bytes * prod(specs[path].shape) // prod(leaf.shape)
        copied += leaf.num_bytes - own if leaf.copies > 1 else 0
        padded += leaf.num_bytes - own if leaf.copies == 1 else 0
    width = jnp.dtype(kv_dtype or dtype).itemsize
    stages = Stages(config, layout.parts("layers"))
    heads = sum(
        layers * group.num_kv_heads * kv_copies(group.num_kv_heads, layout) * group.head_dim
        for layers, group in zip(stages.layers_held, config.cache_groups, strict=True)
    )
    parts = layout.parts("cache_heads") * layout.parts("context")
    return Footprint(
        weights=sum(leaf.num_bytes for leaf in leaves.values()),
        kv_copies=copied,
        padding=padded,
        cache_token=2 * width * heads // parts,
    )
