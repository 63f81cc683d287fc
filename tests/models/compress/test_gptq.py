"""GPTQ against its definition, which inverts anew for each column, and the error that it is to reduce."""

import numpy as np
import pytest

from distaff.models.compress.gptq import gptq


def by_definition(weight: np.ndarray, products: np.ndarray, bound: float, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Optimal brain quantisation in a fixed order: each column's error goes to all later ones by the inverse of what is
    left of the products, found anew for each column."""
    work, size = weight.astype(np.float64).copy(), weight.shape[1]
    damped = products + 0.01 * np.diag(products).mean() * np.eye(size)
    values, scales = np.zeros(work.shape), np.zeros((len(work), size // group))
    for column in range(size):
        if column % group == 0:
            scales[:, column // group] = np.abs(work[:, column : column + group]).max(axis=1) / bound
        scale = scales[:, column // group]
        values[:, column] = np.clip(np.rint(work[:, column] / scale), -bound - 0.5, bound - 0.5)
        inverse = np.linalg.inv(damped[column:, column:])
        error = (work[:, column] - values[:, column] * scale) / inverse[0, 0]
        work[:, column:] -= np.outer(error, inverse[0])
    return values, scales


@pytest.mark.parametrize(("kind", "bound", "group"), [("int4", 7.5, 16), ("int4", 7.5, 160), ("int8", 127.5, 160)])
def test_numbers_are_those_of_the_definition(kind: str, bound: float, group: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 160)).astype(np.float32)
    x = rng.normal(size=(400, 160)) @ rng.normal(size=(160, 160))
    values, scales = gptq(weight, (x.T @ x).astype(np.float32), kind, group)
    want, wanted_scales = by_definition(weight, x.T @ x, bound, group)
    # In single precision a tie may fall to the other side, and all that follows in its row is another answer.
    same = (values == want).all(axis=1)
    assert same.sum() >= len(weight) - 2
    np.testing.assert_allclose(scales[same], wanted_scales[same], rtol=1e-3)


def test_outputs_change_less_than_by_rounding_to_nearest() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(64, 128)).astype(np.float32)
    x = rng.normal(size=(1000, 128)) @ (rng.normal(size=(128, 128)) * np.exp(rng.normal(size=128)))
    values, scales = gptq(weight, (x.T @ x).astype(np.float32), "int4", 32)
    spread = np.repeat(scales, 32, axis=1)
    nearest_scale = np.repeat(np.abs(weight.reshape(64, 4, 32)).max(axis=2) / 7.5, 32, axis=1)
    nearest = np.clip(np.rint(weight / nearest_scale), -8, 7) * nearest_scale
    errors = [np.square(x @ (weight - made).T).sum() for made in (values * spread, nearest)]
    print(errors[0] / errors[1])
    assert errors[0] < 0.7 * errors[1]


def test_inputs_that_are_always_zero_harm_nothing() -> None:
    weight = np.ones((2, 4), np.float32)
    values, scales = gptq(weight, np.diag([1.0, 0.0, 1.0, 0.0]).astype(np.float32), "int8", None)
    np.testing.assert_array_equal(values[:, 1::2], 0)
    np.testing.assert_allclose((values * scales)[:, ::2], 1, rtol=0.01)
