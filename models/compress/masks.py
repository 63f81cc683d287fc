"""Which weights go: the smallest by some score, over a whole matrix, of each row, or of every M neighbours."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

type NOfM = tuple[int, int]
"""Of every M neighbouring inputs N go: (2, 4) leaves what sparse matrix units multiply."""

type Mask = Callable[[Float[np.ndarray, "N K"]], Bool[np.ndarray, "N K"]]


def smallest(scores: Float[np.ndarray, "*shape"], share: float) -> Bool[np.ndarray, "*shape"]:
    """The given share of all, rounded; of equals the first."""
    flat = scores.reshape(-1)
    goes = np.zeros(flat.shape, np.bool_)
    goes[np.argsort(flat, kind="stable")[: round(share * flat.size)]] = True
    return goes.reshape(scores.shape)


def smallest_of_rows(scores: Float[np.ndarray, "N K"], share: float) -> Bool[np.ndarray, "N K"]:
    """The same share of each row."""
    goes = np.zeros(scores.shape, np.bool_)
    order = np.argsort(scores, axis=1, kind="stable")[:, : round(share * scores.shape[1])]
    np.put_along_axis(goes, order, True, axis=1)
    return goes


def smallest_of_groups(scores: Float[np.ndarray, "N K"], n_of_m: NOfM) -> Bool[np.ndarray, "N K"]:
    """N of every M neighbours in a row; M divides K."""
    count, size = n_of_m
    return smallest_of_rows(scores.reshape(-1, size), count / size).reshape(scores.shape)


def magnitude(weight: Float[np.ndarray, "N K"], share: float, n_of_m: NOfM | None = None) -> Float[np.ndarray, "N K"]:
    """A matrix without its smallest weights."""
    scores = np.abs(weight)
    goes = smallest(scores, share) if n_of_m is None else smallest_of_groups(scores, n_of_m)
    return np.where(goes, 0, weight)


def wanda(
    weight: Float[np.ndarray, "N K"],
    products: Float[np.ndarray, "K K"],
    share: float,
    n_of_m: NOfM | None = None,
) -> Float[np.ndarray, "N K"]:
    """A matrix without the weights of each output that say least: by their size times the norm of their inputs (Sun et
    al., arXiv 2306.11695)."""
    scores = np.abs(weight) * np.sqrt(np.diag(products))
    goes = smallest_of_rows(scores, share) if n_of_m is None else smallest_of_groups(scores, n_of_m)
    return np.where(goes, 0, weight)
