"""SparseGPT (Frantar and Alistarh, arXiv 2301.00774): what is pruned is made good for by what stays.

Of single weights as the paper has it, column after column; of whole inputs all at once, as Optimal Brain Surgeon does.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32

from .gptq import inverse_factor
from .masks import NOfM, smallest, smallest_of_groups

_BLOCK = 128
"""Columns for which it is decided at once what goes."""


def sparsegpt(
    weight: Float[np.ndarray, "N K"], products: Float[np.ndarray, "K K"], share: float, n_of_m: NOfM | None = None
) -> Float32[np.ndarray, "N K"]:
    """A matrix with zeros, such that its products with the inputs change least.

    Args:
        weight: rows are outputs.
        products: x^T x of the inputs.
        share: of each block of columns that goes.
        n_of_m: rather than a share, of every M neighbouring inputs N.
    """
    work, size = weight.astype(np.float32), weight.shape[1]
    factor = inverse_factor(products)
    diagonal = np.diag(factor)
    work = np.where(np.diag(products) == 0, 0, work)  # never used
    for first in range(0, size, _BLOCK):
        last = min(first + _BLOCK, size)
        errors = np.zeros((len(work), last - first), np.float32)
        goes = np.zeros(errors.shape, np.bool_)
        if n_of_m is None:
            goes = smallest(np.square(work[:, first:last] / diagonal[first:last]), share)
        for column in range(first, last):
            if n_of_m is not None and column % n_of_m[1] == 0:
                end = column + n_of_m[1]
                scores = np.square(work[:, column:end] / diagonal[column:end])
                goes[:, column - first : end - first] = smallest_of_groups(scores, n_of_m)
            gone = np.where(goes[:, column - first], work[:, column], 0)
            error = gone / diagonal[column]
            # What is gone is exactly zero: nothing in front of a column changes it any more.
            work[:, column] = np.where(goes[:, column - first], 0, work[:, column])
            work[:, column + 1 : last] -= np.outer(error, factor[column, column + 1 : last])
            errors[:, column - first] = error
        work[:, last:] -= errors @ factor[first:last, last:]
    return work


def damped_inverse(products: Float[np.ndarray, "K K"]) -> Float32[np.ndarray, "K K"]:
    """The inverse of the damped products of inputs."""
    factor = inverse_factor(products)
    return factor.T @ factor


def block_costs(
    weight: Float[np.ndarray, "N K"], inverse: Float[np.ndarray, "K K"], size: int
) -> Float[np.ndarray, "blocks"]:
    """By how much the outputs change if `size` neighbouring inputs go, and all others make good for them."""
    blocks = weight.shape[1] // size
    costs = np.empty(blocks)
    for block in range(blocks):
        here = slice(block * size, (block + 1) * size)
        own = weight[:, here].astype(np.float64)
        costs[block] = np.einsum("NB,BN->", own, np.linalg.solve(inverse[here, here].astype(np.float64), own.T))
    return costs


def refitted(
    weight: Float[np.ndarray, "N K"], inverse: Float[np.ndarray, "K K"], stays: Bool[np.ndarray, "K"]
) -> Float32[np.ndarray, "N kept"]:
    """The columns that stay, changed so that they make good for the others."""
    gone = ~stays
    moved = np.linalg.solve(inverse[np.ix_(gone, gone)].astype(np.float64), inverse[np.ix_(gone, stays)])
    return (weight[:, stays] - weight[:, gone] @ moved).astype(np.float32)
