"""GPTQ against its definition, which inverts anew for each column, and the error that it is to reduce."""

import numpy as np
import pytest

from distaff.models.compress.gptq import gptq
from distaff.models.compress.group_scales import least_error_scales, nearest_scales, to_numbers


def by_definition(weight: np.ndarray, products: np.ndarray, scales: np.ndarray, bound: float) -> np.ndarray:
    """Optimal brain quantisation in the order of the inputs' sizes: each column's error goes to all later ones by the
    inverse of what is left of the products, found anew for each column."""
    work, size = weight.astype(np.float64).copy(), weight.shape[1]
    damped = products + 0.01 * np.diag(products).mean() * np.eye(size)
    values, left = np.zeros(work.shape), list(np.argsort(-np.diag(products), kind="stable"))
    for column in list(left):
        scale = scales[:, column * scales.shape[1] // size]
        values[:, column] = np.clip(np.rint(work[:, column] / scale), -bound - 0.5, bound - 0.5)
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        error = (work[:, column] - values[:, column] * scale) / inverse[0, 0]
        work[:, left] -= np.outer(error, inverse[0])
        left.remove(column)
    return values


@pytest.mark.parametrize(("kind", "bound", "group"), [("int4", 7.5, 16), ("int4", 7.5, 160), ("int8", 127.5, 160)])
def test_numbers_are_those_of_the_definition(kind: str, bound: float, group: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 160)).astype(np.float32)
    x = rng.normal(size=(400, 160)) @ rng.normal(size=(160, 160))
    scales = nearest_scales(weight, kind, group)
    values = gptq(weight, (x.T @ x).astype(np.float32), scales, kind)
    want = by_definition(weight, x.T @ x, scales, bound)
    # In single precision a tie may fall to the other side, and all that follows in its row is another answer.
    assert (values == want).all(axis=1).sum() >= len(weight) - 2


def test_outputs_change_less_than_by_rounding_to_nearest() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    x = rng.normal(size=(1000, 128)) @ (rng.normal(size=(128, 128)) * np.exp(rng.normal(size=128)))
    scales = nearest_scales(weight, "int4", 32)
    spread = np.repeat(scales, 32, axis=1)
    values = gptq(weight, (x.T @ x).astype(np.float32), scales, "int4")
    nearest = to_numbers(weight / spread, "int4")
    errors = [np.square(x @ (weight - made * spread).T).sum() for made in (values, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_scales_of_least_error_are_the_best_of_a_finer_search() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(8, 64)).astype(np.float32)
    counts = np.exp(rng.normal(size=64)).astype(np.float32)

    def cost(scales: np.ndarray) -> np.ndarray:
        spread = np.repeat(scales, 32, axis=1)
        error = np.square(weight - np.clip(np.rint(weight / spread), -8, 7) * spread) * counts
        return error.reshape(8, 2, 32).sum(axis=2)

    found, whole = least_error_scales(weight, counts, "int4", 32), nearest_scales(weight, "int4", 32)
    np.testing.assert_allclose(whole, np.abs(weight.reshape(8, 2, 32)).max(axis=2) / 7.5, rtol=1e-6)
    fine = np.min([cost(whole * share) for share in np.linspace(0.5, 1, 501)], axis=0)
    assert (cost(found) <= cost(whole)).all() and cost(found).sum() < 1.1 * fine.sum() < 0.9 * cost(whole).sum()


def test_inputs_that_are_always_zero_harm_nothing() -> None:
    weight = np.ones((2, 4), np.float32)
    scales = nearest_scales(weight, "int8", 4)
    values = gptq(weight, np.diag([1.0, 0.0, 1.0, 0.0]).astype(np.float32), scales, "int8")
    np.testing.assert_array_equal(values[:, 1::2], 0)
    np.testing.assert_allclose((values * scales)[:, ::2], 1, rtol=0.01)
