"""Sums, extremes and running totals, against JAX."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from .running import compare

REDUCTIONS = [
    lambda x: x.sum(axis=(0, 2)), lambda x: x.max(axis=1), lambda x: x.min(axis=(1, 2)), lambda x: x.prod(axis=1),
    lambda x: jnp.argmax(x, axis=1), lambda x: jnp.argmin(x, axis=2), lambda x: jnp.cumsum(x, axis=1),
    lambda x: jnp.cumprod(x, axis=2), lambda x: lax.cummax(x, axis=1, reverse=True), lambda x: lax.cummin(x, axis=0),
]  # fmt: skip


@pytest.mark.parametrize("function", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["int32", "uint32", "uint8", "float32"])
@given(seed=st.integers(0, 99), shape=st.tuples(*[st.integers(1, 5)] * 3))
@settings(max_examples=2, derandomize=True, database=None)
def test_along_axes(function: Callable[..., Any], dtype: str, seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    # Ties in floats, and numbers that wrap.
    x = rng.integers(0, 4, shape) if dtype == "float32" else rng.integers(0, 2**31, shape)
    compare(function, x.astype(dtype))


@pytest.mark.parametrize("function", [jnp.max, jnp.min, jnp.argmax, jnp.argmin, jnp.sum])
def test_nan_is_handed_on(function: Callable[..., Any]) -> None:
    x = np.asarray([[1, np.nan, 3], [-np.inf, 2, 2]], np.float32)
    compare(lambda x: function(x, axis=1), x)


@pytest.mark.parametrize("function", [jnp.all, jnp.any, jnp.max, jnp.min, jnp.argmax])
def test_truth_values(function: Callable[..., Any]) -> None:
    compare(lambda x: function(x, axis=1), np.asarray([[True, False], [False, False], [True, True]]))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_combination_of_the_callers(size: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, size, 2)).astype(np.float32)
    start = np.float32(-np.inf)
    compare(lambda x: lax.reduce(x, start, lambda a, b: jnp.where(a > b, a, b), (1,)), x)
