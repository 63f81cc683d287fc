"""What is given away is written in place, and nothing else ever is."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from distaff.backends.torch.names import torch

from .running import lowered

BIG = np.zeros((64, 512), np.float32)
I = np.int32(3)  # noqa: E741


def run(function: Any, *args: Any, given: tuple[int, ...] = ()) -> tuple[list[Any], list[Any]]:
    """Inputs and results as tensors."""
    tensors = [torch.tensor(np.asarray(arg)) for arg in args]
    with torch.inference_mode():
        return tensors, list(lowered(function, *args, given=given).module(*tensors))


def put(x: Any, i: Any) -> Any:
    return x.at[i].set(1.0)


def test_a_value_that_is_given_away_is_written_in_place() -> None:
    (x, _), (out,) = run(put, BIG, I, given=(0,))
    assert out.data_ptr() == x.data_ptr() and x[3].eq(1).all() and x[4].eq(0).all()


def test_a_value_that_is_kept_stays_as_it_was() -> None:
    (x, _), (out,) = run(put, BIG, I)
    assert out.data_ptr() != x.data_ptr() and x.eq(0).all() and out[3].eq(1).all()


def test_what_is_looked_at_later_is_not_written() -> None:
    def both(x: Any, i: Any) -> Any:
        view = x.reshape(-1)[:5].reshape(5, 1)
        return put(x, jnp.int32(0)), view * 2, x.sum()

    _, (out, view, total) = run(both, BIG, I, given=(0,))
    assert out[0].eq(1).all() and view.eq(0).all() and total == 0


def test_an_input_that_comes_back_twice_comes_back_as_two() -> None:
    _, (a, b, c) = run(lambda x, i: (x, x, x[0]), BIG, I, given=(0,))
    assert len({each.data_ptr() for each in (a, b, c)}) == 3


@pytest.mark.parametrize(
    "same",
    [
        lambda x: lax.shift_right_logical(x, np.int32(0)),
        lambda x: lax.select_n(np.int32(0), x, x + 1, x + 2),
        lambda x: lax.dynamic_update_slice(x * 2, x, (0, 0)),
    ],
)
def test_an_operation_that_changes_nothing_gives_memory_of_its_own(same: Any) -> None:
    """Or what writes into its result would write into what it was given."""
    (x, _), (out,) = run(lambda x, i: same(x).at[i].set(1), BIG.astype(np.int32), I)
    assert x.eq(0).all() and out[3].eq(1).all()


def test_constants_and_broadcasts_are_not_written() -> None:
    def filled(x: Any, i: Any) -> Any:
        return put(jnp.zeros_like(x), i), put(jnp.broadcast_to(x[:1] + 1, x.shape), i)

    step = lowered(filled, BIG, I).module
    with torch.inference_mode():
        for row in (3, 5):
            empty, spread = step(torch.tensor(BIG), torch.tensor(row))
            assert empty.sum() == 512 and empty[row].eq(1).all() and spread.sum() == 64 * 512


def test_carries_are_written_through_loops_and_given_away_only_by_their_owner() -> None:
    def loop(x: Any, i: Any) -> Any:
        return lax.fori_loop(0, 4, lambda k, y: put(y, k + i), x)

    (x, _), (out,) = run(loop, BIG, I, given=(0,))
    assert out.data_ptr() == x.data_ptr() and out[3:7].eq(1).all()
    (x, _), (out,) = run(loop, BIG, I)
    assert x.eq(0).all() and out[3:7].eq(1).all() and out.sum() == 4 * 512


def test_a_carry_is_written_though_another_is_not_the_programs() -> None:
    def loop(x: Any, i: Any) -> Any:
        spread = jnp.zeros((3, 512), np.float32)
        turn = lambda k, carry: (put(carry[0], k), jnp.broadcast_to(carry[1][:1] + 1, spread.shape))  # noqa: E731
        return lax.fori_loop(0, i, turn, (x, spread))

    (x, _), (out, spread) = run(loop, BIG, I, given=(0,))
    assert out.data_ptr() == x.data_ptr() and out[:3].eq(1).all() and out.sum() == 3 * 512 and spread.eq(3).all()


def test_a_constant_that_a_loop_ends_with_is_not_written() -> None:
    def loop(x: Any, i: Any) -> Any:
        return put(lax.fori_loop(0, 2, lambda k, y: jnp.zeros(BIG.shape, np.float32), x), i)

    step = lowered(loop, BIG, I, given=(0,)).module
    with torch.inference_mode():
        for row in (3, 5):
            (out,) = step(torch.ones(BIG.shape), torch.tensor(row))
            assert out[row].eq(1).all() and out.sum() == 512


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_carries_that_look_at_one_value_are_not_written(turns: int) -> None:
    def loop(x: Any, i: Any) -> Any:
        def turn(k: Any, carry: Any) -> Any:
            made = carry[0] + 1
            return made, made, jnp.concatenate([made, made])[:64]

        first, second, third = lax.fori_loop(0, i, turn, (x, x * 2, x * 3))
        return put(first, 0), second, put(third, 1)

    x = np.ones_like(BIG)
    _, (first, second, third) = run(loop, x, np.int32(turns), given=(0,))
    made = turns + 1
    assert first[0].eq(1).all() and first[1:].eq(made).all()
    assert second.eq(made if turns else 2).all() and third[0].eq(made if turns else 3).all() and third[1].eq(1).all()


def test_a_copy_that_is_written_across_lies_as_arrays_do() -> None:
    _, (out,) = run(lambda x, i: x.at[:, i].set(1), BIG, np.arange(3, dtype=np.int32))
    assert out.is_contiguous() and out[:, :3].eq(1).all() and out.sum() == 3 * 64


def test_slices_of_stacked_weights_are_not_written() -> None:
    def scan(x: Any, i: Any) -> Any:
        weights = jnp.stack([x, x])
        return lax.scan(lambda total, w: (total + put(w, i).sum(), None), 0.0, weights)[0] + weights.sum()

    _, (out,) = run(scan, BIG, I)
    assert out == 2 * 512


def test_branches_copy_what_they_change() -> None:
    def branch(x: Any, i: Any) -> Any:
        return lax.cond(i > 0, lambda y: put(y, i), lambda y: y, x), x.sum()

    (x, _), (out, total) = run(branch, BIG, I)
    assert x.eq(0).all() and total == 0 and out.sum() == 512
