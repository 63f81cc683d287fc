"""Random bits are JAX's, bit for bit; Gumbel noise is within 2 ulp of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from distaff.backends.errors import UnsupportedError
from distaff.models.sampling import Purpose, row_keys

from .running import compare, lowered, on_torch

SEEDS = np.random.default_rng(0).integers(0, 2**32, (5, 2), dtype=np.uint32)


@given(seed=st.integers(0, 2**32 - 1), data=st.integers(0, 2**31 - 1), shape=st.lists(st.integers(0, 7), max_size=3))
@settings(max_examples=3, derandomize=True, database=None)
def test_bits_of_any_key(seed: int, data: int, shape: list[int]) -> None:
    def bits(seed: Any, data: Any) -> Any:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), data)
        first, second = jax.random.split(key)
        return jax.random.bits(first, tuple(shape)), jax.random.bits(second, tuple(shape), "uint8")

    compare(bits, np.asarray([seed, seed ^ data], np.uint32), np.int32(data))


def test_seeds_and_uniform_numbers() -> None:
    compare(lambda seed: jax.random.key_data(jax.random.key(seed)), np.int32(-5))
    compare(lambda seed: jax.random.uniform(jax.random.key(seed), (3, 1000)), np.uint32(2**32 - 1))
    compare(lambda seed: jax.random.randint(jax.random.key(seed), (100,), -5, 1000), np.int32(7))


def test_keys_of_rows() -> None:
    choices, positions = np.arange(5, dtype=np.int32), np.arange(100, 105, dtype=np.int32)

    def data(seeds: Any, choices: Any, positions: Any) -> Any:
        return jax.random.key_data(row_keys(seeds, choices, positions, Purpose.ACCEPT))

    compare(data, SEEDS, choices, positions)


def test_gumbel_noise_is_within_2_ulp() -> None:
    def noise(seeds: Any) -> Any:
        keys = jax.random.wrap_key_data(seeds, impl="threefry2x32")
        return jax.vmap(lambda key: jax.random.gumbel(key, (4096,)))(keys)

    want, got = np.asarray(jax.jit(noise)(SEEDS)), on_torch(noise, SEEDS)
    # Near 0 the noise is a difference of logarithms: its ulp there is that of what it is added to.
    ulp = np.spacing(np.maximum(np.abs(want), 1).astype(np.float32))
    worst = float((np.abs(want - got) / ulp).max())
    print(f"{want.size} draws, at most {worst} ulp apart")
    assert worst <= 2


def test_keys_are_moved_as_pairs_of_words() -> None:
    def moved(seeds: Any, ids: Any) -> Any:
        keys = jax.random.wrap_key_data(seeds, impl="threefry2x32")
        swapped = keys.at[ids].set(keys[:2][::-1])
        picked = jnp.where(jnp.arange(5) < 3, keys, swapped)
        grid = jnp.broadcast_to(jnp.concatenate([picked, keys[1:3]]).reshape(7, 1), (7, 3)).T
        either = lax.select_n(ids[0] > ids[1], keys, swapped)
        last = jax.random.key_data(jnp.squeeze(grid[:, 2:3], 1)[ids[0]])
        return jax.random.key_data(grid), jax.random.key_data(either), last

    compare(moved, SEEDS, np.asarray([4, 0], np.int32))


def test_keys_of_another_kind_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"key<rbg>: torch backends draw the bits of threefry2x32"):
        lowered(lambda seed: jax.random.bits(jax.random.key(seed, impl="rbg"), (3,)), np.uint32(1))


def test_another_order_of_counting_is_refused() -> None:
    with (
        jax.threefry_partitionable(False),
        pytest.raises(UnsupportedError, match="jax_threefry_partitionable is off"),
    ):
        lowered(lambda seed: jax.random.bits(jax.random.key(seed), (3,)), np.uint32(1))
