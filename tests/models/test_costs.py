"""The arithmetic of MFU and MBU, against weights counted one by one and attention counted pair by pair."""

import math
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest

from distaff.models.checkpoints import open_checkpoint
from distaff.models.config import ModelConfig
from distaff.models.costs import Steps, Work, work_of
from distaff.models.decoder import weight_specs
from distaff.models.families import config_from_hf

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def config_of(name: str) -> ModelConfig:
    return config_from_hf(open_checkpoint(GOLDEN / name).hf_config, source=name)


def matrices(config: ModelConfig) -> int:
    """Weights of all matrices, one embedding table (used as the head) among them."""
    specs = weight_specs(config, jnp.float32).values()
    sizes = {spec.path: math.prod(spec.shape) for spec in specs if len(spec.shape) - (spec.layers is not None) > 1}
    sizes = {path: size for path, size in sizes.items() if "norm" not in path}
    tables = [size for name, size in sizes.items() if "embed" in name and "position" not in name]
    return sum(sizes.values()) - sum(tables) + max(tables)


def work(config: ModelConfig, *, steps: int = 1, tokens: int, drawn: int = 0, attended: int = 0, read: int = 0) -> Work:
    return work_of(config, Steps(steps, tokens, drawn, attended, read), weight_bytes=2, kv_bytes=2)


@pytest.mark.parametrize("name", ["llama31", "qwen3", "smollm2", "olmo2"])
def test_a_step_reads_every_matrix_once(name: str) -> None:
    config = config_of(name)
    count = matrices(config)
    assert work(config, tokens=1, drawn=1) == Work(2.0 * count, 2.0 * count)
    assert work(config, steps=3, tokens=12, drawn=12) == Work(2.0 * count * 12, 2.0 * count * 3)


def test_a_token_that_is_not_drawn_from_needs_no_head() -> None:
    config = config_of("llama31")
    saved = work(config, tokens=1, drawn=1).flops - work(config, tokens=1).flops
    assert saved == 2 * config.vocab_size * config.embed_dim


def test_attention_is_counted_pair_by_pair() -> None:
    config = config_of("llama31")
    more = work(config, tokens=4, attended=1 + 2 + 3 + 4, read=4)
    less = work(config, tokens=4)
    pairs = sum(q >= k for q in range(4) for k in range(4))
    heads = sum(layer.attention.num_heads * layer.attention.head_dim for layer in config.layers)
    keys = sum(layer.attention.num_kv_heads * layer.attention.head_dim for layer in config.layers)
    assert more.flops - less.flops == pairs * 2 * 2 * heads  # query times key, weight times value
    assert more.bytes - less.bytes == 4 * 2 * keys * 2


def test_a_window_bounds_what_is_seen() -> None:
    config = config_of("llama31")
    narrow = replace(
        config,
        layers=tuple(replace(layer, attention=replace(layer.attention, window=5)) for layer in config.layers),
    )
    assert work(narrow, tokens=1, attended=50, read=50) == work(config, tokens=1, attended=5, read=5)
    assert work(narrow, tokens=1, attended=4, read=4) == work(config, tokens=1, attended=4, read=4)


def test_experts_are_read_as_they_are_needed() -> None:
    config = config_of("mixtral")
    everything = matrices(config)
    one, many = work(config, tokens=1, drawn=1), work(config, tokens=10_000, drawn=10_000)
    assert many.bytes == pytest.approx(2 * everything)
    assert one.bytes == one.flops < 2 * everything  # one token reads what it is multiplied with


def test_nothing_costs_nothing() -> None:
    assert work(config_of("llama31"), steps=0, tokens=0) == Work(0.0, 0.0)
