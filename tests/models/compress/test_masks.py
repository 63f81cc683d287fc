"""Masks against their definitions, weight by weight."""

import numpy as np
import pytest

from distaff.models.compress.masks import magnitude, wanda


def made() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 24)) * np.exp(rng.normal(size=24))
    return rng.normal(size=(6, 24)).astype(np.float32), (x.T @ x).astype(np.float32)


def test_magnitude_takes_the_smallest_of_the_matrix() -> None:
    weight, _ = made()
    found = magnitude(weight, 0.3)
    edge = np.sort(np.abs(weight).reshape(-1))[round(0.3 * weight.size)]
    np.testing.assert_array_equal(found, np.where(np.abs(weight) >= edge, weight, 0))


def test_wanda_takes_the_same_share_of_each_row_by_size_times_norm() -> None:
    weight, products = made()
    found = wanda(weight, products, 0.25)
    for row, out in zip(weight, found, strict=True):
        scores = [abs(w) * products[i, i] ** 0.5 for i, w in enumerate(row)]
        gone = sorted(range(24), key=lambda i: scores[i])[:6]
        assert sorted(np.flatnonzero(out == 0)) == sorted(gone)
    assert not np.array_equal(found == 0, magnitude(weight, 0.25) == 0)


@pytest.mark.parametrize(("count", "size"), [(2, 4), (4, 8)])
def test_n_of_m_leaves_the_best_of_every_group(count: int, size: int) -> None:
    weight, products = made()
    for found, scores in (
        (magnitude(weight, 0.5, (count, size)), np.abs(weight)),
        (wanda(weight, products, 0.5, (count, size)), np.abs(weight) * np.sqrt(np.diag(products))),
    ):
        for row in range(6):
            for first in range(0, 24, size):
                stay = set(np.argsort(scores[row, first : first + size])[count:])
                assert set(np.flatnonzero(found[row, first : first + size])) == stay
