"""SparseGPT against its definition with an inverse for each column, and what it and the refit are to reduce."""

import numpy as np
import pytest

from distaff.models.compress.masks import NOfM, wanda
from distaff.models.compress.sparsegpt import block_costs, damped_inverse, refitted, sparsegpt


def made(rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix, and inputs that depend on each other."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, size)) @ (rng.normal(size=(size, size)) + 2 * np.eye(size))
    return rng.normal(size=(rows, size)).astype(np.float32), x


def damped(x: np.ndarray) -> np.ndarray:
    products = x.T @ x
    return products + 0.01 * np.diag(products).mean() * np.eye(len(products))


def by_definition(weight: np.ndarray, damped: np.ndarray, share: float, n_of_m: NOfM | None) -> np.ndarray:
    """Columns in order, each with the inverse of what is left of the products, found anew."""
    work, size = weight.astype(np.float64), weight.shape[1]
    costs = np.asarray([np.linalg.inv(damped[c:, c:])[0, 0] for c in range(size)])
    goes = np.zeros(work.shape, bool)
    for column in range(size):
        block = 128 if n_of_m is None else n_of_m[1]
        if column % block == 0:
            scores = np.square(work[:, column : column + block]) / costs[column : column + block]
            if n_of_m is None:
                count = round(share * scores.size)
                goes[:, column : column + block] = scores < np.sort(scores.reshape(-1))[count]
            else:
                edge = np.sort(scores, axis=1)[:, n_of_m[0]][:, None]
                goes[:, column : column + block] = scores < edge
        inverse = np.linalg.inv(damped[column:, column:])
        error = np.where(goes[:, column], work[:, column], 0) / inverse[0, 0]
        work[:, column:] -= np.outer(error, inverse[0])
        work[goes[:, column], column] = 0
    return work


@pytest.mark.parametrize(("size", "n_of_m"), [(160, None), (40, (2, 4)), (40, (4, 8))])
def test_weights_are_those_of_the_definition(size: int, n_of_m: NOfM | None) -> None:
    weight, x = made(12, size)
    found = sparsegpt(weight, (x.T @ x).astype(np.float32), 0.5, n_of_m)
    wanted = by_definition(weight, damped(x), 0.5, n_of_m)
    # In single precision two scores may change places, and all that follows in that row is another answer.
    same = ((found == 0) == (wanted == 0)).all(axis=1)
    assert same.sum() >= len(weight) - 2
    np.testing.assert_allclose(found[same], wanted[same], rtol=2e-3, atol=2e-3)
    assert (found == 0).mean() == pytest.approx(0.5, abs=0.01)


def test_outputs_change_less_than_without_making_good() -> None:
    """Of inputs that a few things explain."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    x = rng.normal(size=(1000, 20)) @ rng.normal(size=(20, 128)) + rng.normal(size=(1000, 128))
    products = (x.T @ x).astype(np.float32)
    errors = [
        np.square(x @ (weight - found).T).sum()
        for found in (sparsegpt(weight, products, 0.5), wanda(weight, products, 0.5))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_inputs_that_are_always_zero_go_for_nothing() -> None:
    weight = np.ones((2, 8), np.float32)
    found = sparsegpt(weight, np.diag([1.0, 0.0] * 4).astype(np.float32), 0.5)
    np.testing.assert_array_equal(found[:, 1::2], 0)
    np.testing.assert_allclose(found[:, ::2], 1)


def test_a_refit_is_least_squares() -> None:
    weight, x = made(6, 20)
    stays: np.ndarray = np.arange(20) % 3 != 0
    found = refitted(weight, damped_inverse((x.T @ x).astype(np.float32)), stays)
    whole = damped(x)
    wanted = np.linalg.solve(whole[np.ix_(stays, stays)], whole[np.ix_(stays, np.ones(20, bool))] @ weight.T).T
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)


def test_the_cost_of_a_block_is_what_its_refit_leaves() -> None:
    weight, x = made(6, 20)
    whole, inverse = damped(x), damped_inverse((x.T @ x).astype(np.float32))
    costs = block_costs(weight, inverse, 5)
    for block in range(4):
        stays: np.ndarray = np.arange(20) // 5 != block
        change = weight.astype(np.float64)
        change[:, stays] -= refitted(weight, inverse, stays)
        assert costs[block] == pytest.approx(np.einsum("NK,KJ,NJ->", change, whole, change), rel=1e-3)
