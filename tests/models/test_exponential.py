"""Noise for chosen tokens is that behind what jax.random draws for all."""

import jax
import jax.numpy as jnp
import numpy as np

from distaff.models.exponential import exponential

SIZE = 5003


def gumbel(keys: jax.Array, ids: jax.Array) -> jax.Array:
    return -jnp.log(exponential(keys, ids))


KEYS = jax.random.split(jax.random.key(7), 3)


def by_jax() -> np.ndarray:
    return np.asarray(jax.vmap(lambda key: jax.random.gumbel(key, (SIZE,), jnp.float32))(KEYS))


def test_it_is_what_jax_random_draws_bit_for_bit() -> None:
    np.testing.assert_array_equal(jax.jit(gumbel)(KEYS, jnp.arange(SIZE)[None]), by_jax())


def test_any_tokens_in_any_order_get_the_same_noise() -> None:
    ids = np.random.default_rng(0).integers(0, SIZE, (3, 100)).astype(np.int32)
    want = np.take_along_axis(by_jax(), ids, axis=1)
    np.testing.assert_array_equal(jax.jit(gumbel)(KEYS, ids), want)


def test_it_is_never_infinite() -> None:
    noise = jax.jit(gumbel)(jax.random.split(jax.random.key(0), 64), jnp.arange(1 << 14)[None])
    assert noise.min() > -4.5 and noise.max() < 16.7
