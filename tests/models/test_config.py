"""How layers become repeating blocks and cache sites."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig

FULL = LayerConfig(AttentionConfig(2, 1, 4, 0.5, None), MlpConfig(8), NormConfig())


def layer(window: int | None) -> LayerConfig:
    return replace(FULL, attention=replace(FULL.attention, window=window))


def model(windows: list[int | None]) -> ModelConfig:
    return ModelConfig("llama", 10, 8, 100, tuple(layer(window) for window in windows), NormConfig(), True)


@pytest.mark.parametrize(
    ("windows", "blocks"),
    [
        ([None] * 32, [(1, 32)]),
        ([4, None] * 13, [(2, 13)]),
        (([4] * 5 + [None]) * 10 + [4, 4], [(6, 10), (1, 2)]),  # Gemma 3 27B
        ([None, None, 4, 4], [(1, 2), (1, 2)]),
    ],
)
def test_the_published_patterns_give_the_blocks_one_would_draw(
    windows: list[int | None], blocks: list[tuple[int, int]]
) -> None:
    assert [(len(segment.block), segment.repeats) for segment in model(windows).segments] == blocks


@given(st.lists(st.sampled_from([None, 4, 9]), min_size=1, max_size=14))
def test_segments_and_cache_sites_cover_every_layer_once(windows: list[int | None]) -> None:
    config = model(windows)
    unrolled = [layer for segment in config.segments for _ in range(segment.repeats) for layer in segment.block]
    assert tuple(unrolled) == config.layers

    places = {}
    for segment, sites in zip(config.segments, config.cache_sites, strict=True):
        for ids, site in zip(segment.layer_ids, sites, strict=True):
            for repeat, i in enumerate(ids):
                assert config.cache_groups[site.group].window == windows[i]
                places[i] = (site.group, site.first + repeat * site.stride)
    assert sorted(places) == list(range(len(windows)))
    # A group holds its layers without gaps.
    for number, group in enumerate(config.cache_groups):
        inside = [place for owner, place in places.values() if owner == number]
        assert sorted(inside) == list(range(group.num_layers))
