"""The front, and the order of candidates."""

import numpy as np
import pytest

from distaff.sharding.sweep.plan import score
from distaff.sharding.sweep.rank import front, order
from distaff.sharding.sweep.request import Targets

from .asked import request


def test_the_front_is_what_nothing_beats() -> None:
    low, high = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 3.0, 5.0])
    assert front(low, high, np.ones(5, bool)).tolist() == [True, True, False, False, True]
    assert front(low, high, np.array([True, False, True, True, False])).tolist() == [True, False, True, True, False]


@pytest.mark.slow
def test_the_order_follows_the_objective_and_the_targets() -> None:
    scores = score(request(targets=Targets(tpot=2e-3)))
    first = {objective: order(scores, objective)[0] for objective in ("latency", "throughput", "cost")}
    fitting = np.flatnonzero(scores.fits)
    assert scores.tpot[1][first["latency"]] == scores.tpot[1][fitting].min()
    kept = fitting[scores.tpot[1][fitting] <= 2e-3]
    assert scores.per_chip[first["throughput"]] == scores.per_chip[kept].max()
    assert first["cost"] == first["throughput"]  # one kind of chip: the same
