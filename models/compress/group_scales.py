"""Scales of groups of weights: the largest number at the end of the type, or whatever errs least."""

import numpy as np
from jaxtyping import Float, Float32, Int8

from .scheme import BOUNDS

_SHRINK = np.linspace(1, 0.5, 21, dtype=np.float32)
"""Shares of the largest weight of a group that are tried for the end of the type."""


def nearest_scales(weight: Float[np.ndarray, "N K"], kind: str, group: int) -> Float32[np.ndarray, "N groups"]:
    """Those that take the largest weight of each group to the end of the type."""
    largest = np.abs(weight.reshape(len(weight), -1, group)).max(axis=2)
    return (np.where(largest > 0, largest, 1) / BOUNDS[kind]).astype(np.float32)


def least_error_scales(
    weight: Float[np.ndarray, "N K"], importance: Float[np.ndarray, "K"], kind: str, group: int
) -> Float32[np.ndarray, "N groups"]:
    """Those of a grid with the smallest sum of squared errors.

    Args:
        importance: what each input's errors count.
    """
    grouped = weight.reshape(len(weight), -1, group).astype(np.float32)
    counts = importance.reshape(-1, group).astype(np.float32)
    whole = nearest_scales(weight, kind, group)
    best, least = whole, np.full(whole.shape, np.inf, np.float32)
    for share in _SHRINK:
        scales = whole * share
        errors = grouped - to_numbers(grouped / scales[:, :, None], kind) * scales[:, :, None]
        cost = np.einsum("NGK,NGK,GK->NG", errors, errors, counts)
        best, least = np.where(cost < least, scales, best), np.minimum(cost, least)
    return best


def to_numbers(x: Float[np.ndarray, "..."], kind: str) -> Int8[np.ndarray, "..."]:
    """The nearest whole numbers of a type; its ends for those beyond."""
    bound = BOUNDS[kind]
    return np.clip(np.rint(x), -bound - 0.5, bound - 0.5).astype(np.int8)
