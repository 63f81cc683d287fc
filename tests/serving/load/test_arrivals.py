"""Moments of sending have the rate and the spread that were asked for."""

import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.load.arrivals import Pattern, scaled


@pytest.mark.parametrize(("text", "variation"), [("poisson", 1.0), ("even", 0.0), ("gamma:0.25", 2.0)])
def test_rate_and_variation(text: str, variation: float) -> None:
    moments = np.asarray(Pattern.parse(text).moments(20_000, 50.0, seed=3))
    gaps = np.diff(moments)
    assert np.all(gaps >= 0)
    assert 1 / gaps.mean() == pytest.approx(50.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05, abs=1e-9)


def test_poisson_arrivals_have_no_memory() -> None:
    moments = np.asarray(Pattern.parse("poisson").moments(20_000, 10.0, seed=1))
    counts = np.histogram(moments, bins=np.arange(0, moments[-1], 1.0))[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_bursts_come_at_once() -> None:
    moments = Pattern.parse("burst:8").moments(20, 4.0, seed=0)
    assert [len(set(moments[at : at + 8])) for at in (0, 8, 16)] == [1, 1, 1] and len(set(moments)) == 3
    many = Pattern.parse("burst:8").moments(16_000, 4.0, seed=0)
    assert len(many) / many[-1] == pytest.approx(4.0, rel=0.1)


def test_the_seed_decides() -> None:
    pattern = Pattern.parse("poisson")
    assert pattern.moments(9, 2.0, seed=5) == pattern.moments(9, 2.0, seed=5) != pattern.moments(9, 2.0, seed=6)


@pytest.mark.parametrize("text", ["", "uniform", "gamma", "gamma:0", "gamma:-1", "burst:0", "burst:1.5", "poisson:1"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="gamma:SHAPE"):
        Pattern.parse(text)


def test_a_trace_is_scaled_to_a_rate() -> None:
    assert scaled((0.0, 1.0, 4.0), 1.5) == (0.0, 0.5, 2.0)
    with pytest.raises(InvalidParameterError, match="same moment"):
        scaled((0.0, 0.0), 1.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(InvalidParameterError, match="above 0"):
        Pattern().moments(1, rate, seed=0)
    with pytest.raises(InvalidParameterError, match="above 0"):
        scaled((0.0, 1.0), rate)
