"""Times of requests, on moments made up by hand."""

import math

import pytest

from distaff.serving.times import times_report

from .made_times import Made


def test_one_request() -> None:
    request = Made(1.5, 1.7, 2.5, start=0.5)
    assert (request.ttft, request.latency, request.tpot) == (1.0, 2.0, 0.5)
    assert request.gaps == pytest.approx([0.2, 0.8])
    assert Made(1.5, 2.5, tokens=5).tpot == 0.25  # several came at once
    assert (Made(1.5).tpot, Made(1.5).gaps) == (0.0, [])
    assert Made().ttft == Made().latency == math.inf and Made(tokens=3).tpot == 0


def test_many() -> None:
    value = times_report([Made(1.0, 2.0), Made(3.0), Made()])
    assert value["ttft_ms"]["p50"] == 2000 and value["e2el_ms"]["p50"] == 2500
    assert value["tpot_ms"]["mean"] == value["itl_ms"]["mean"] == 1000
