"""What turns a stream is orthogonal, the same every time, and spreads whatever stands out."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from distaff.models.compress.turn import turned, turned_back


def matrix(size: int) -> np.ndarray:
    return np.asarray(turned(jnp.eye(size)))


@given(st.integers(1, 200) | st.sampled_from([256, 576, 896, 1024]))
def test_it_is_orthogonal_and_always_the_same(size: int) -> None:
    turn = matrix(size)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-5)
    np.testing.assert_array_equal(turn, matrix(size))
    np.testing.assert_allclose(turned_back(np.eye(size)), turn.T, atol=1e-6)


@pytest.mark.parametrize("size", [16, 64, 512, 4096])
def test_of_powers_of_two_it_is_scipys_hadamard_matrix_with_signs(size: int) -> None:
    turn = matrix(size) * np.sqrt(size)
    np.testing.assert_allclose(np.abs(turn), 1, atol=1e-5)
    np.testing.assert_allclose(turn * np.sign(turn[:, :1]), hadamard(size), atol=1e-5)


@pytest.mark.parametrize("size", [63, 576, 960, 1536, 2560, 3584])
def test_one_large_number_becomes_many_small_ones(size: int) -> None:
    """Of no entry is the square more than twice its share, for any channel."""
    assert np.square(matrix(size)).max() * size < 2 + 1e-5


def test_leading_axes_are_rows_of_their_own() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 48)).astype(np.float32)
    np.testing.assert_allclose(turned(jnp.asarray(x)), x @ matrix(48), atol=1e-5)
    np.testing.assert_allclose(turned_back(x), x @ matrix(48).T, atol=1e-5)
