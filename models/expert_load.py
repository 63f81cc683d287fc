"""How often each expert of a mixture is chosen: counted beside the cache, by the layers that write there."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from .config import CacheSite, ModelConfig, MoeConfig
from .kv_cache import KVCache


def num_experts(config: ModelConfig) -> int:
    """The most that a layer has; 0 for a model without."""
    return max((layer.mlp.num_experts for layer in config.layers if isinstance(layer.mlp, MoeConfig)), default=0)


def with_load(config: ModelConfig, cache: KVCache) -> KVCache:
    """The cache with counters behind its groups, [L, E + 1] for the L layers of each, all zero."""
    width = num_experts(config) + 1
    return (*cache, tuple(jnp.zeros((group.num_layers, width), jnp.int32) for group in config.cache_groups))


def count_load(cache: KVCache, load: Int[Array, "e"], site: CacheSite, repeat: Int[Array, ""]) -> KVCache:
    """The cache with a layer's load added: tokens of each of its experts, and at the end those that had to wait."""
    *groups, counters = cache
    counter = counters[site.group]
    layer = site.first + repeat * site.stride
    counter = counter.at[layer, : len(load) - 1].add(load[:-1]).at[layer, -1].add(load[-1])
    return (*groups, (*counters[: site.group], counter, *counters[site.group + 1 :]))


def taken_load(config: ModelConfig, cache: KVCache) -> tuple[KVCache, Int[Array, "L E_and_1"]]:
    """The cache without counters, and what they say in the order of the model's layers."""
    *groups, counters = cache
    firsts = [sum(len(counter) for counter in counters[:group]) for group in range(len(counters))]
    order = [0] * config.num_layers
    for segment, sites in zip(config.segments, config.cache_sites, strict=True):
        for layer_ids, site in zip(segment.layer_ids, sites, strict=True):
            for repeat, layer in enumerate(layer_ids):
                order[layer] = firsts[site.group] + site.first + repeat * site.stride
    return tuple(groups), jnp.concatenate(counters)[jnp.asarray(order)]
