"""The knee is found where a server that is simulated has it."""

import asyncio
from typing import Any

import numpy as np
import pytest

from distaff.serving.goodput import Goodput
from distaff.serving.load.record import Record
from distaff.serving.load.statistics import summary
from distaff.serving.load.sweep import Measured, Plan, find_knee


class Queue:
    """One server, first come first served, `service` seconds for each request: it keeps up below 1 / service."""

    def __init__(self, service: float) -> None:
        self.service = service
        self.rates: list[float] = []

    async def measure(self, rate: float) -> Measured:
        self.rates.append(rate)
        records, free = list[Record](), 0.0
        for at in np.arange(400) / rate:
            free = max(free, float(at)) + self.service
            records.append(Record(float(at), float(at), [(free, 1)], free))
        return lambda goodput: summary(records, goodput=goodput)


def knee(capacity: float, goodput: Goodput | None, plan: Plan) -> tuple[dict[str, Any], Queue]:
    queue = Queue(1 / capacity)
    return asyncio.run(find_knee(queue.measure, plan, goodput)), queue


@pytest.mark.parametrize("goodput", [Goodput(ttft=300), None])
def test_the_knee_is_the_capacity(goodput: Goodput | None) -> None:
    found, queue = knee(11.0, goodput, Plan(first=1.0, refinements=4))
    assert 10.0 <= found["knee"] <= 11.0 and not found["reached_most"]
    rates = [point["rate"] for point in found["points"]]
    assert rates == sorted(rates) and {1.0, 2.0, 4.0, 8.0, 16.0} <= set(rates) and len(rates) == 9
    assert sorted(queue.rates) == rates, "a rate was sent twice"
    assert all(point["kept"] == (point["rate"] <= 11.0) for point in found["points"])
    assert found["limits"]["ttft_ms"] == pytest.approx(300 if goodput else 5 * 1000 / 11)


def test_a_server_that_is_never_full_has_no_knee_below_the_highest_rate() -> None:
    found, queue = knee(1e6, Goodput(ttft=300), Plan(first=1.0, most=8.0))
    assert found["reached_most"] and found["knee"] == 8.0 and queue.rates == [1, 2, 4, 8]


def test_a_server_that_is_too_slow_for_any_rate() -> None:
    found, queue = knee(0.1, Goodput(ttft=300), Plan(first=1.0))
    assert found["knee"] is None and queue.rates == [1.0]
