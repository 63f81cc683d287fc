"""Searching blocks finds what searching everything finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.vocabulary_blocks import BLOCK, argmax, best_blocks

SIZES = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK, 1000]


def values(size: int) -> np.ndarray:
    """Few different values, so that ties are everywhere, -inf among them."""
    x = np.random.default_rng(size).integers(0, 9, (16, size)).astype(np.float32)
    x[x == 0] = -np.inf
    x[0] = -np.inf
    return x


@pytest.mark.parametrize("size", SIZES)
def test_argmax_is_the_first_of_the_largest(size: int) -> None:
    np.testing.assert_array_equal(argmax(jnp.asarray(values(size))), values(size).argmax(axis=-1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_blocks", [1, 3, 100])
def test_best_blocks_hold_all_above_their_floor_and_the_largest_in_order(size: int, num_blocks: int) -> None:
    x = values(size)
    found, ids, floor = map(np.asarray, best_blocks(jnp.asarray(x), num_blocks))
    for row in range(len(x)):
        inside = ids[row] < size
        np.testing.assert_array_equal(found[row][inside], x[row, ids[row][inside]])
        assert (found[row][~inside] == -np.inf).all()
        assert (np.diff(ids[row]) > 0).all()
        assert set(np.flatnonzero(x[row] > floor[row])) <= set(ids[row])
        count = min(num_blocks, size)
        assert (x[row] >= floor[row]).sum() >= count
    count = min(num_blocks, size)
    top, places = jax.lax.top_k(found, count)
    want, want_ids = jax.lax.top_k(x, count)
    np.testing.assert_array_equal(top, want)
    finite = np.asarray(want) > -np.inf
    np.testing.assert_array_equal(np.take_along_axis(ids, np.asarray(places), axis=1)[finite], want_ids[finite])
