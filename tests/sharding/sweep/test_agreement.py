"""Kendall's tau over pairs that differ, and what choosing by the prediction costs."""

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from distaff.sharding.sweep.agreement import kendall_tau, regret

times = st.lists(st.integers(1, 10**6), min_size=3, max_size=12, unique=True)


@settings(max_examples=30)
@given(times, st.randoms())
def test_over_all_pairs_it_is_scipys(measured: list[int], random: Random) -> None:
    predicted = random.sample(range(100), len(measured))
    tau, pairs = kendall_tau(predicted, measured, sure=0.0)
    assert pairs == math.comb(len(measured), 2)
    theirs: Any = kendalltau(predicted, measured)
    assert tau == pytest.approx(theirs.statistic)


def test_pairs_that_hardly_differ_do_not_count() -> None:
    assert kendall_tau([1, 2, 3], [10.0, 9.0, 20.0]) == (1.0, 2)
    assert math.isnan(kendall_tau([1, 2], [10.0, 10.5])[0])
    assert kendall_tau([1, 1], [10.0, 20.0]) == (0.0, 1)  # a tie predicts nothing


def test_regret_is_what_the_pick_takes_longer() -> None:
    assert regret([1.0, 2.0, 3.0], [11.0, 10.0, 30.0]) == pytest.approx(0.1)
    assert regret([2.0, 1.0], [11.0, 10.0]) == 0.0
