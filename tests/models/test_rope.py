"""What a rotation must do, whatever its frequencies."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.rotation import rotate
from distaff.models.rope import RopeConfig, RopeScaling, rotation

SCALINGS = [
    None,
    RopeScaling("linear", factor=4.0),
    RopeScaling("dynamic", factor=2.0, original_positions=16, max_positions=32),
    RopeScaling("llama3", factor=8.0, original_positions=16),
    RopeScaling("yarn", factor=4.0, original_positions=16),
    RopeScaling("longrope", original_positions=16, divisors=(1.0, 1.5, 2.0)),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scores_depend_on_the_distance_alone(scaling: RopeScaling | None) -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 2, 8)), jnp.float32) for _ in range(2))
    rope = RopeConfig(6, 100.0, scaling)

    def score(i: int, j: int) -> np.ndarray:
        turned = [rotate(x, *rotation(rope, jnp.array([p]))) for x, p in ((q, i), (k, j))]
        return np.asarray((turned[0] * turned[1]).sum(-1))

    np.testing.assert_allclose(score(11, 4), score(107, 100), atol=1e-4)
    assert np.abs(score(11, 4) - score(11, 5)).max() > 1e-2


def test_entries_behind_the_rotated_ones_stay() -> None:
    x = jnp.arange(16.0).reshape(1, 2, 8)
    turned = rotate(x, *rotation(RopeConfig(4), jnp.array([7])))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert (turned[..., :4] != x[..., :4]).any()
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_the_attention_factor_scales_the_rotated_part() -> None:
    x = jnp.ones((1, 1, 4))
    plain = rotate(x, *rotation(RopeConfig(4), jnp.array([3])))
    scaling = RopeScaling("linear", factor=1.0, attention_factor=1.5)
    np.testing.assert_allclose(rotate(x, *rotation(RopeConfig(4, scaling=scaling), jnp.array([3]))), 1.5 * plain)
