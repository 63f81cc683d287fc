"""When requests leave, and that their times are those of a server whose delays are known."""

import asyncio

import pytest

from distaff.serving.load.generator import Clock, run_closed, run_open
from distaff.serving.load.record import Record
from distaff.serving.load.statistics import most_at_once, summary
from distaff.serving.load.trace import Ask

SLACK = 0.1  # other work may hold this machine up


class Fake:
    """A server that takes `first` seconds to the first token and `gap` to each further one."""

    def __init__(self, first: float = 0.02, gap: float = 0.01) -> None:
        self.first, self.gap = first, gap

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        await asyncio.sleep(self.first)
        record.arrivals.append((clock(), 1))
        for _ in range(ask.max_tokens - 1):
            await asyncio.sleep(self.gap)
            record.arrivals.append((clock(), 1))


def test_an_open_loop_waits_for_nobody() -> None:
    asks = [Ask("x", 1, at) for at in (0.05, 0.06, 0.06, 0.15)]
    records = asyncio.run(run_open(Fake(first=0.3), asks))
    for ask, record in zip(asks, records, strict=True):
        assert record.due == ask.at and 0 <= record.sent - ask.at < SLACK
        assert record.succeeded and 0.3 <= record.ttft < 0.3 + SLACK
    assert most_at_once(records) == 4


def test_known_delays_are_measured() -> None:
    asks = [Ask("x", 4, number * 0.01) for number in range(8)]
    value = summary(asyncio.run(run_open(Fake(0.1, 0.05), asks)))
    assert 100 <= value["ttft_ms"]["p50"] < 100 + SLACK * 1e3
    assert 50 <= value["tpot_ms"]["p50"] < 50 + SLACK * 1e3 / 3
    assert 50 <= value["itl_ms"]["mean"] < 50 + SLACK * 1e3 / 3
    assert 250 <= value["e2el_ms"]["p50"] < 250 + SLACK * 1e3
    assert value["output_tokens"] == 32 and value["failed"] == 0


def test_a_closed_loop_keeps_so_many_on_their_way() -> None:
    ended: list[Record] = []
    records = asyncio.run(run_closed(Fake(), [Ask("x", 2)] * 7, 3, on_end=ended.append))
    assert len(records) == len(ended) == 7 and most_at_once(records) == 3
    assert all(record.succeeded for record in records)
    assert len(asyncio.run(run_closed(Fake(), [Ask("x", 1)], 5))) == 1


def test_what_is_not_complete_in_time_is_cancelled_and_failed() -> None:
    class Uneven(Fake):
        async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
            await asyncio.sleep(60 if ask.prompt == "slow" else 0)
            await super().send(ask, record, clock)

    asks = [Ask("slow", 1), Ask("fast", 1)]
    records = asyncio.run(run_open(Uneven(), asks, drain=0.5))
    assert [record.error for record in records] == ["not complete in time", None]
    assert 0.5 <= records[0].ended < 10


def test_a_bug_in_a_transport_is_not_a_failure_of_the_server() -> None:
    class Broken:
        async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
            raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup, match="unhandled"):
        asyncio.run(run_closed(Broken(), [Ask("x", 1)], 1))
    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(run_open(Broken(), [Ask("x", 1)]))
