"""GPTQ (Frantar et al., arXiv 2210.17323): the error of each number is made good by those that are not rounded yet."""

import numpy as np
from jaxtyping import Float, Float32, Int8

from .scheme import BOUNDS

_BLOCK = 128
"""Columns whose errors are passed on at once to those behind them."""
_DAMPING = 0.01
"""Of the mean diagonal, added to it: section 3.3."""


def gptq(
    weight: Float[np.ndarray, "N K"], products: Float[np.ndarray, "K K"], kind: str, group: int | None
) -> tuple[Int8[np.ndarray, "N K"], Float32[np.ndarray, "N groups"]]:
    """Numbers and scales of a matrix, such that its products with the inputs change least.

    Args:
        weight: rows are outputs.
        products: x^T x of the inputs.
        kind: "int8" or "int4".
        group: inputs that share a scale; None: all.
    """
    work, size = weight.astype(np.float32).copy(), weight.shape[1]
    length, bound = group or size, BOUNDS[kind]
    factor = inverse_factor(products)
    work[:, np.diag(products) == 0] = 0  # never used
    values = np.empty(work.shape, np.int8)
    scales = np.empty((len(work), size // length), np.float32)
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        errors = np.empty((len(work), last - first), np.float32)
        for column in range(first, last):
            if column % length == 0:
                largest = np.abs(work[:, column : column + length]).max(axis=1)
                scales[:, column // length] = np.where(largest > 0, largest, 1) / np.float32(bound)
            scale = scales[:, column // length]
            number = np.clip(np.rint(work[:, column] / scale), -bound - 0.5, bound - 0.5)
            values[:, column] = number
            error = (work[:, column] - number * scale) / factor[column, column]
            # A group may reach beyond the block: its scale is taken from columns as they are by then.
            work[:, column + 1 : last] -= np.outer(error, factor[column, column + 1 : last])
            errors[:, column - first] = error
        work[:, last:] -= errors @ factor[first:last, last:]
    return values, scales


def inverse_factor(products: Float[np.ndarray, "K K"]) -> Float32[np.ndarray, "K K"]:
    """The upper Cholesky factor of the inverse of the damped products."""
    damped = products.astype(np.float64)
    diagonal = np.diag(damped).copy()
    diagonal[diagonal == 0] = 1
    np.fill_diagonal(damped, diagonal + _DAMPING * np.diag(products).mean(dtype=np.float64))
    inverse = np.linalg.inv(damped)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
