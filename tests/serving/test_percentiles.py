"""Percentiles, against numpy's."""

import numpy as np
import pytest

from distaff.serving.percentiles import percentiles_ms, rate_per_s


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(1).exponential(0.1, 101)
    shown = percentiles_ms(values.tolist())
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert shown[name] == pytest.approx(np.percentile(values, share) * 1e3)
    assert shown["mean"] == pytest.approx(values.mean() * 1e3)
    assert set(percentiles_ms([]).values()) == {0.0}


def test_rates() -> None:
    assert rate_per_s(3, 2.0) == 1.5 and rate_per_s(3, 0.0) == 0.0
