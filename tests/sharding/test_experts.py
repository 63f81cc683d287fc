"""Tokens that are sent to the devices of their experts come back as the sums that one device makes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from distaff.sharding.experts import capacity_of, dispatch, share_sent
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import parse_layout

PARTS, HELD, TOKENS, TOP_K, WIDTH = 4, 3, 6, 2, 5
FACTORS = np.random.default_rng(0).normal(size=(PARTS * HELD, WIDTH)).astype(np.float32)
"""Expert e multiplies with row e."""


def dispatched(capacity: int) -> Callable[..., tuple[Array, Array]]:
    def on_device(x: Array, experts: Array, weights: Array, real: Array) -> tuple[Array, Array]:
        mine = jax.lax.axis_index("expert") * HELD

        def apply(x: Array, local: Array, weights: Array) -> Array:
            here = (local >= 0) & (local < HELD)
            factors = jnp.where(here[..., None], jnp.asarray(FACTORS)[local + mine], 0)
            return (weights[..., None] * factors * x[:, None]).sum(axis=1)

        y, late = dispatch(
            apply, x, experts, weights, real, axes=("expert",), parts=PARTS, held=HELD, capacity=capacity
        )
        return y, late[None]

    mesh = make_mesh(parse_layout(f"expert={PARTS}", num_devices=8))
    split = P("expert")
    return jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=(split,) * 4, out_specs=(split, split), check_vma=False)
    )


PROGRAMS = {capacity: dispatched(capacity) for capacity in (1, 4, TOKENS)}


def check(capacity: int, experts: np.ndarray, real: np.ndarray, seed: int = 1) -> int:
    """Compares with sums over all experts; returns how many copies were late."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(PARTS * TOKENS, WIDTH)).astype(np.float32)
    weights = rng.uniform(size=experts.shape).astype(np.float32)
    y, late = PROGRAMS[capacity](x, experts, weights, real)
    expected = (weights[..., None] * FACTORS[experts] * x[:, None]).sum(axis=1) * real[:, None]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    owners = [{int(e) // HELD for e in row} if used else set() for row, used in zip(experts, real, strict=True)]
    queues = [sum(d in each for each in owners[p * TOKENS :][:TOKENS]) for p in range(PARTS) for d in range(PARTS)]
    assert int(np.asarray(late).sum()) == sum(max(0, queue - capacity) for queue in queues)
    return int(np.asarray(late).sum())


@pytest.mark.parametrize("capacity", list(PROGRAMS))
def test_one_device_may_be_everybodys_choice(capacity: int) -> None:
    experts = np.tile(np.array([[4, 3]], np.int32), (PARTS * TOKENS, 1))
    late = check(capacity, experts, np.ones(PARTS * TOKENS, bool))
    assert late == PARTS * (TOKENS - capacity)


@given(st.data())
@pytest.mark.parametrize("capacity", list(PROGRAMS))
def test_any_choice_gives_the_sums_of_one_device(capacity: int, data: st.DataObject) -> None:
    choice = st.lists(st.integers(0, PARTS * HELD - 1), min_size=TOP_K, max_size=TOP_K, unique=True)
    experts = np.array([data.draw(choice) for _ in range(PARTS * TOKENS)], np.int32)
    check(capacity, experts, np.arange(PARTS * TOKENS) < data.draw(st.integers(0, PARTS * TOKENS)))


def test_a_buffer_is_what_even_choice_fills() -> None:
    # Of two experts on each of two devices, two different ones: both on one device 1 time in 6, so each device is hit
    # by 5 of 6 tokens.
    assert share_sent(2, 4, 2) == pytest.approx(5 / 6)
    assert share_sent(1, 64, 8) == pytest.approx(1 / 8) and share_sent(8, 8, 8) == 1
    rng = np.random.default_rng(5)
    drawn = np.array([rng.choice(128, 8, replace=False) // 16 == 0 for _ in range(20000)]).any(axis=1).mean()
    assert share_sent(8, 128, 8) == pytest.approx(drawn, abs=0.01)
    assert capacity_of(1024, 8, 128, 8, 1.25) == int(np.ceil(1.25 * 1024 * share_sent(8, 128, 8)))
    assert capacity_of(8, 8, 128, 8, 4.0) == capacity_of(8, 8, 128, 8, None) == 8
