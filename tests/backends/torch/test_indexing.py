"""Gather, scatter and dynamic slices, against JAX: out of range and with every mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from .running import compare

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
IDS = np.asarray([0, 2, 5, -1, -4], np.int32)


@pytest.mark.parametrize("mode", ["clip", "fill", "promise_in_bounds"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, ids, mode: x.at[ids].get(mode=mode),
        lambda x, ids, mode: x.at[:, ids].get(mode=mode),
        lambda x, ids, mode: x.at[ids, ids].get(mode=mode),
        lambda x, ids, mode: x.at[ids, :, ids[::-1]].get(mode=mode),
        lambda x, ids, mode: x.at[:, ids[:, None], ids[None]].get(mode=mode),
        lambda x, ids, mode: x.at[ids[0]].get(mode=mode),
        lambda x, ids, mode: jnp.take_along_axis(x, ids[None, :4, None], axis=2, mode=mode),
    ],
)
def test_reading(function: Callable[..., Any], mode: str) -> None:
    ids = np.clip(IDS, 0, 2) if mode == "promise_in_bounds" else IDS
    compare(lambda x, ids: function(x, ids, mode), X, ids)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "uint8", "bool", "float32", "float8_e4m3fn"])
def test_what_fills_is_jaxs(dtype: str) -> None:
    compare(lambda x, ids: x.at[ids].get(mode="fill"), X[0, 0].astype(jnp.dtype(dtype)), IDS)


@pytest.mark.parametrize("size", [1, 4096], ids=["copied", "in place"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, ids, y: x.at[ids].set(y[:, None, None], mode="drop"),
        lambda x, ids, y: x.at[:, ids].set(y[None, :, None], mode="drop"),
        lambda x, ids, y: x.at[ids, ids[::-1]].set(y[:, None], mode="drop"),
        lambda x, ids, y: x.at[1, ids].add(y[:, None]),
        lambda x, ids, y: x.at[ids[0]].set(y[0]),
        lambda x, ids, y: x.at[jnp.zeros(5, jnp.int32)].add(y[:, None, None]),
    ],
)
def test_writing(function: Callable[..., Any], size: int) -> None:
    x = np.tile(X, (size // X.size + 1, 1, 1))
    ids = np.asarray([0, 2, 9, -1, 1], np.int32)  # no two alike
    y = np.arange(1, 6, dtype=np.float32)
    compare(lambda x, ids, y: function(x * 1, ids, y), x, ids, y)


@given(start=st.tuples(*[st.integers(-3, 7)] * 3), size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.just(5)))
@settings(max_examples=10, derandomize=True, database=None)
def test_windows_that_move(start: tuple[int, ...], size: tuple[int, ...]) -> None:
    at = [np.int32(each) for each in start]
    compare(lambda x, *at: lax.dynamic_slice(x, at, size), X, *at)
    compare(lambda x, *at: lax.dynamic_update_slice(x, -x[: size[0], : size[1]], at), X, *at)


def test_windows_of_their_own_for_each_row() -> None:
    """vmap makes gathers and scatters with windows that are no whole axes, and with batching axes."""
    at = np.asarray([1, 3, 0], np.int32)
    compare(jax.vmap(lambda row, i: lax.dynamic_slice(row, (i, i), (2, 3))), X, at)
    compare(jax.vmap(lambda row, i: lax.dynamic_update_slice(row, row[:2, :2] * 9, (i, i))), X, at)
    compare(jax.vmap(lambda row, i: row[i]), X, at)
    compare(lambda x, at: jax.vmap(lambda i: lax.dynamic_slice(x, (i, 0, 1), (1, 4, 2)))(at), X, at)


def test_adding_up_by_number() -> None:
    rows = np.asarray([0, 1, 1, 3, 0], np.int32)
    compare(lambda x, rows: jax.ops.segment_sum(x, rows, num_segments=3), X.reshape(-1, 5)[:5], rows)
    compare(lambda rows: jnp.bincount(rows, length=3), rows)
