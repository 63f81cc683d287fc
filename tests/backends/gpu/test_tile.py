"""The arithmetic that both kernels share."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import AttentionSpec
from distaff.backends.gpu.tile import Lanes, attend, empty_state, finish, split_lanes


@pytest.mark.parametrize(
    ("head_dim", "widths"),
    [(4, [16]), (64, [64]), (80, [64, 16]), (96, [64, 32]), (100, [64, 32, 16]), (192, [128, 64]), (256, [256])],
)
def test_a_head_is_split_into_powers_of_two(head_dim: int, widths: list[int]) -> None:
    parts = split_lanes(head_dim)
    assert [part.width for part in parts] == widths
    assert [part.start for part in parts] == np.cumsum([0, *widths])[:-1].tolist()
    assert sum(part.used for part in parts) == head_dim


def test_a_row_that_sees_nothing_is_zero_and_not_nan() -> None:
    lanes = (Lanes(0, 16, 16),)
    ones = (jnp.ones((2, 16)),)
    visible = jnp.asarray([[True, False], [False, False]])
    state = attend(empty_state(2, lanes), ones, ones, ones, AttentionSpec(1.0), visible)
    state = attend(state, ones, ones, ones, AttentionSpec(1.0), jnp.zeros((2, 2), bool))
    (out,), logs = finish(state)
    np.testing.assert_allclose(out, [[1.0] * 16, [0.0] * 16])
    np.testing.assert_allclose(logs, [16 * np.log2(np.e), -np.inf], rtol=1e-6)
