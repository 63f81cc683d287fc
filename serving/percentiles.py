"""Percentiles of times and rates, as reports state them."""

from collections.abc import Sequence

import numpy as np

QUANTILES = (0.5, 0.9, 0.99)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 (interpolated) and the mean, in milliseconds; zeros of nothing."""
    names = [f"p{share * 100:g}" for share in QUANTILES]
    if not seconds:
        return dict.fromkeys([*names, "mean"], 0.0)
    values = np.asarray(seconds) * 1e3
    return {**dict(zip(names, np.quantile(values, QUANTILES).tolist(), strict=True)), "mean": float(values.mean())}


def rate_per_s(count: float, seconds: float) -> float:
    """So many a second; 0 where no time went by."""
    return count / seconds if seconds > 0 else 0.0
