"""What moves, repeats and joins, against JAX."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .running import compare

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(4, 6),
        lambda x: lax.reshape(x, (12, 2), dimensions=(2, 0, 1)),
        lambda x: x.transpose(2, 0, 1),
        lambda x: x[:, None, 1:3, ::2],
        lambda x: x[1:, 0],
        lambda x: lax.broadcast_in_dim(x, (5, 2, 3, 4), (1, 2, 3)),
        lambda x: jnp.broadcast_to(x[:, :1], (2, 3, 4)),
        lambda x: lax.rev(x, (0, 2)),
        lambda x: jnp.concatenate([x, x * 2, x[:, :1]], axis=1),
        lambda x: lax.split(x, (1, 2), axis=1),
        lambda x: jnp.pad(x, ((0, 1), (2, 0), (0, 0)), constant_values=-1.5),
        lambda x: lax.pad(x, x[0, 0, 1], ((-1, 2, 0), (0, 0, 0), (1, -2, 0))),
        lambda x: jnp.pad(x > 3, ((0, 1), (0, 0), (0, 0)), constant_values=True),
        lambda x: x + lax.broadcasted_iota(jnp.float32, (2, 3, 4), 1),
        lambda x: (lax.iota(jnp.uint32, 5), jnp.zeros((2, 0)), jnp.full((3,), 7, jnp.uint8), x.sum()),
        lambda x: jnp.squeeze(x[:, :1], 1),
    ],
)
def test_it_is_where_jax_puts_it(function: Callable[..., Any]) -> None:
    compare(function, X)
