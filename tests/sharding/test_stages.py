"""Stages of a pipeline have all layers once, in order, and their caches have room for what they compute."""

import jax.numpy as jnp
import pytest

from distaff.sharding.pipeline import bubble
from distaff.sharding.stages import Stages

from .shipped import shipped


@pytest.mark.parametrize(
    ("model", "count", "loads"),
    [
        ("llama-3.1-70b", 4, (20, 20, 20, 20)),
        ("llama-3.1-70b", 3, (27, 27, 26)),
        ("gemma-3-27b", 4, (18, 18, 18, 8)),
        ("gemma-3-27b", 5, (12, 12, 12, 12, 14)),
    ],
)
def test_layers_are_cut_between_blocks(model: str, count: int, loads: tuple[int, ...]) -> None:
    config = shipped(model)
    stages = Stages(config, count)
    assert stages.loads == loads and sum(loads) == config.num_layers
    assert stages.even == (len(set(loads)) == 1)
    room = zip(stages.layers_held, config.cache_groups, strict=True)
    assert all(count * held >= group.num_layers for held, group in room)


def test_a_stages_cache_has_a_place_for_each_of_its_layers() -> None:
    config = shipped("gemma-3-27b")
    stages = Stages(config, 4)
    places: list[tuple[int, int]] = []
    for number in range(len(config.segments)):
        held = stages.held(number, jnp.int32(0))
        places += [(s.group, s.first + r * s.stride) for r in range(held.repeats) for s in held.sites]
    assert len(set(places)) == len(places)
    for group, count in enumerate(stages.layers_held):
        assert sorted(layer for of, layer in places if of == group) == list(range(count))


def test_a_stage_waits_for_the_first_parts_and_for_longer_stages() -> None:
    assert bubble(8, (5,)) == 0
    assert bubble(8, (20, 20)) == pytest.approx(1 / 3)
    # Two parts take three ticks of three layers; a stage computes two or three of them twice.
    assert bubble(8, (3, 2)) == pytest.approx(1 - (2 * 3 + 2 * 2) / (2 * 3 * 3))
