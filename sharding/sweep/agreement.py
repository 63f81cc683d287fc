"""How well an order that was predicted agrees with one that was measured."""

from collections.abc import Sequence
from itertools import combinations

SURE = 0.15
"""Pairs whose medians differ by less may have either order."""


def kendall_tau(predicted: Sequence[float], measured: Sequence[float], *, sure: float = SURE) -> tuple[float, int]:
    """Kendall's tau over the pairs that differ by more than `sure` as measured, and how many there are.

    1: all of them are in the predicted order; -1: none. nan without such pairs.
    """
    agree = pairs = 0
    for (p, m), (q, n) in combinations(zip(predicted, measured, strict=True), 2):
        if abs(m - n) > sure * min(m, n):
            pairs += 1
            agree += ((p < q) == (m < n)) - ((p < q) != (m < n)) if p != q else 0
    return (agree / pairs if pairs else float("nan")), pairs


def regret(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """How much longer than the best one the one takes that was predicted to be best, as a fraction."""
    pick = min(range(len(predicted)), key=lambda n: predicted[n])
    return measured[pick] / min(measured) - 1
