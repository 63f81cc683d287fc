"""Sorting and the largest few, against JAX: ties, signed zeros, infinities and NaN included."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .running import compare


def ties(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 5, (3, 40)).astype(dtype)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32", "bool"])
def test_sorting_keeps_the_order_of_equals(dtype: str) -> None:
    place = np.broadcast_to(np.arange(40, dtype=np.int32), (3, 40))
    compare(lambda x, place: lax.sort((x, place), dimension=1, num_keys=1), ties(dtype), place)
    compare(lambda x, place: lax.sort((x, -place, place), dimension=1, num_keys=2), ties(dtype), place)


def test_argsort() -> None:
    compare(lambda x: jnp.argsort(x, axis=0, stable=True), ties("int32"))


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float32", "bfloat16"])
def test_the_largest_few_and_the_first_of_equals(dtype: str) -> None:
    x = ties("float32").astype(jnp.dtype(dtype))
    compare(lambda x: lax.top_k(x, 7), x)
    if dtype == "float32":
        x[0, 3], x[0, 5], x[1, 2], x[2, :] = np.inf, -np.inf, -7.5, -3
        compare(lambda x: lax.top_k(x, 40), x)
