"""Candidates: how many a second, and what their figures are."""

import time
from dataclasses import replace

import pytest

from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.efficiency import DEFAULT, NOMINAL, Efficiencies
from distaff.sharding.sweep.plan import Placed, place, score
from distaff.sharding.sweep.slices import parse_slice

from .asked import request


@pytest.mark.soak  # it measures a time
def test_twenty_thousand_candidates_a_second() -> None:
    many = request(
        batches=tuple(range(4, 1604, 4)), chunks=(512, 2048, 8192), weights=("bf16", "int8"), kv=("bf16", "int8")
    )
    placed = place(many)
    began = time.perf_counter()
    scores = score(many, placed)
    assert len(scores) > 20_000
    assert len(scores) / (time.perf_counter() - began) > 20_000


@pytest.mark.slow
def test_low_best_and_high_are_in_this_order() -> None:
    scores = score(request(weights=("bf16", "int8")))
    for low, best, high in (scores.ttft, scores.tpot):
        assert (low <= best).all() and (best <= high).all()
    low, best, high = scores.throughput
    assert (low >= best).all() and (best >= high).all()


def test_a_layout_of_one_device_needs_no_efficiency_of_links() -> None:
    slow = Efficiencies(NOMINAL, replace(DEFAULT.best, links=0.01), DEFAULT.high)
    layout, on = parse_layout("data=1", num_devices=1), parse_slice("v6e:1x1")
    placed = (Placed.of(request(), layout, on),)
    fast, same = (score(request(slices=(on,), efficiencies=at), placed).tpot[1] for at in (DEFAULT, slow))
    assert (fast == same).all()
