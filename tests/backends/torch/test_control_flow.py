"""Loops and branches, against JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .running import compare

X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_scans_carry_and_stack(length: int, reverse: bool) -> None:
    def run(x: Any, scale: Any) -> Any:
        def body(carry: Any, row: Any) -> Any:
            total, count = carry
            return (total * scale + row, count + 1), (total.sum(), row[::-1])

        return lax.scan(body, (jnp.zeros(3), jnp.int32(0)), x[:length], reverse=reverse)

    compare(run, X, np.float32(0.5))


def test_a_scan_without_slices_and_one_that_forwards() -> None:
    compare(lambda x: lax.scan(lambda c, _: (c * 2 + 1, c), x, None, length=3), X)
    compare(lambda x: lax.fori_loop(0, 5, lambda i, c: (c[1], c[0] + i), (x, x * 2)), X)


def test_while_loops_look_at_constants_of_both_parts() -> None:
    def run(x: Any, limit: Any, step: Any) -> Any:
        return lax.while_loop(lambda c: c[0].sum() < limit, lambda c: (c[0] + step, c[1] + 1), (x, jnp.int32(0)))

    compare(run, X, np.float32(500), np.float32(3))
    compare(run, X, np.float32(-1), np.float32(3))


@pytest.mark.parametrize("number", [-1, 0, 1, 2, 5])
def test_switches_clamp(number: int) -> None:
    branches = [lambda x: (x, x * 1), lambda x: (x + 1, x), lambda x: (jnp.zeros_like(x), x[::-1])]
    compare(lambda n, x: lax.switch(n, branches, x), np.int32(number), X)


def test_calls_are_inlined() -> None:
    @jax.custom_jvp
    def double(x: Any) -> Any:
        return x * 2

    double.defjvp(lambda primals, tangents: (double(*primals), tangents[0]))

    def run(x: Any) -> Any:
        return jax.jit(lambda y: jax.nn.silu(y) + jax.checkpoint(jnp.sin)(y))(double(jax.nn.relu(x)))

    compare(run, X, ulps=8, atol=1e-6)


def test_swapped_and_doubled_carries_keep_their_values() -> None:
    """Large enough that scatters may write in place: carries that trade places, or are one value, must not suffer."""
    big = np.zeros((40, 1024), np.float32)

    def run(x: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            a, b, _ = carry
            a = a.at[i].set(jnp.float32(1) + i)
            return b, a, a

        a, b, c = lax.fori_loop(0, 6, body, (x, x, x))
        return a, b, c, x.sum()

    compare(run, big)

    def stacked(x: Any) -> Any:
        return lax.scan(lambda c, i: (c.at[i].add(1.0), c), x, jnp.arange(3))

    compare(stacked, big)
