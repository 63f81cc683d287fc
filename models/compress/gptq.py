"""GPTQ (Frantar et al., arXiv 2210.17323): the error of each number is made good by those that are not rounded yet."""

import numpy as np
from jaxtyping import Float, Float32, Int8

from .group_scales import to_numbers

_BLOCK = 128
"""Columns whose errors are passed on at once to those behind them."""
_DAMPING = 0.01
"""Of the mean diagonal, added to it: section 3.3."""


def gptq(
    weight: Float[np.ndarray, "N K"],
    products: Float[np.ndarray, "K K"],
    scales: Float[np.ndarray, "N groups"],
    kind: str,
) -> Int8[np.ndarray, "N K"]:
    """Numbers of a matrix, such that its products with the inputs change least.

    Columns are rounded from the largest inputs to the smallest ("act order"), so that the many small ones make good for
    the few that matter; scales are known before, so that groups stay in order.

    Args:
        weight: rows are outputs.
        products: x^T x of the inputs.
        scales: of groups of inputs.
        kind: "int8" or "int4".
    """
    order = np.argsort(-np.diag(products), kind="stable")
    each = np.repeat(scales, weight.shape[1] // scales.shape[1], axis=1)[:, order]
    products = products[np.ix_(order, order)]
    work, size = weight.astype(np.float32)[:, order], weight.shape[1]
    factor = inverse_factor(products)
    work[:, np.diag(products) == 0] = 0  # never used
    values = np.empty(work.shape, np.int8)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        # Columns as rows: those that are changed together lie together.
        block, errors = work[:, first:last].T.copy(), np.empty((last - first, len(work)), np.float32)
        for place, column in enumerate(range(first, last)):
            scale = each[:, column]
            number = to_numbers(block[place] / scale, kind)
            values[:, order[column]] = number
            errors[place] = (block[place] - number * scale) / factor[column, column]
            block[place + 1 :] -= np.outer(factor[column, column + 1 : last], errors[place])
        work[:, last:] -= errors.T @ factor[first:last, last:]
    return values


def inverse_factor(products: Float[np.ndarray, "K K"]) -> Float32[np.ndarray, "K K"]:
    """The upper Cholesky factor of the inverse of the damped products."""
    damped = products.astype(np.float64)
    diagonal = np.diag(damped).copy()
    diagonal[diagonal == 0] = 1
    np.fill_diagonal(damped, diagonal + _DAMPING * np.diag(products).mean(dtype=np.float64))
    inverse = np.linalg.inv(damped)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
