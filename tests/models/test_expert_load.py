"""Counters of experts lie by cache groups and are told by layers."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.expert_load import count_load, num_experts, taken_load, with_load
from distaff.models.families import config_from_hf

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("case", ["gpt_oss", "glm4_moe"])  # two cache groups; the first layer is dense
def test_loads_come_back_in_the_order_of_the_layers(case: str) -> None:
    config = config_from_hf(json.loads((GOLDEN / case / "config.json").read_text()))
    experts = num_experts(config)
    kept = tuple(jnp.zeros(1) for _ in config.cache_groups)
    cache = with_load(config, kept)
    for segment, sites in zip(config.segments, config.cache_sites, strict=True):
        for layer_ids, site in zip(segment.layer_ids, sites, strict=True):
            for repeat, layer in enumerate(layer_ids):
                load = jnp.arange(experts + 1, dtype=jnp.int32) + 100 * layer
                cache = count_load(count_load(cache, load, site, jnp.int32(repeat)), load, site, jnp.int32(repeat))
    groups, load = taken_load(config, cache)
    assert len(groups) == len(config.cache_groups)
    expected = 2 * (np.arange(experts + 1) + 100 * np.arange(config.num_layers)[:, None])
    np.testing.assert_array_equal(load, expected)


def test_a_dense_model_has_no_experts() -> None:
    assert num_experts(config_from_hf(json.loads((GOLDEN / "llama31" / "config.json").read_text()))) == 0
