"""Figures of a run, against numpy on times that were made up."""

import json
import math

import numpy as np
import pytest

from distaff.serving.goodput import Goodput
from distaff.serving.load.record import Record
from distaff.serving.load.statistics import most_at_once, summary


def made_up(count: int, seed: int) -> tuple[list[Record], dict[str, np.ndarray]]:
    """Requests with random times, and their figures worked out on arrays."""
    source = np.random.default_rng(seed)
    due = np.cumsum(source.exponential(0.1, count))
    sent = due + source.exponential(0.001, count)
    tokens = source.integers(1, 40, count)
    firsts = source.exponential(0.3, count)
    gaps = [source.exponential(0.02, number - 1) for number in tokens]
    records = []
    for number in range(count):
        moments = sent[number] + firsts[number] + np.concatenate([[0], np.cumsum(gaps[number])])
        records.append(
            Record(
                float(due[number]),
                float(sent[number]),
                [(float(moment), 1) for moment in moments],
                float(moments[-1]) + 0.001,
                prompt_tokens=10,
                output_tokens=int(tokens[number]),
            )
        )
    latency = firsts + np.array([each.sum() for each in gaps])
    several = tokens > 1
    figures = {
        "ttft_ms": firsts,
        "e2el_ms": latency,
        "tpot_ms": ((latency - firsts) / np.maximum(tokens - 1, 1))[several],
        "itl_ms": np.concatenate(gaps),
        "late_ms": sent - due,
    }
    return records, figures


def test_figures_are_those_of_numpy() -> None:
    records, figures = made_up(300, seed=4)
    value = json.loads(json.dumps(summary(records), allow_nan=False))
    for name, seconds in figures.items():
        for share in (50, 90, 99):
            assert value[name][f"p{share}"] == pytest.approx(np.percentile(seconds, share) * 1e3, rel=1e-6)
        assert value[name]["mean"] == pytest.approx(seconds.mean() * 1e3, rel=1e-6)
    duration = max(record.ended for record in records) - records[0].sent
    assert value["duration_s"] == pytest.approx(duration)
    assert value["output_tokens_per_s"] == pytest.approx(sum(len(record.arrivals) for record in records) / duration)
    assert value["requests_per_s"] == pytest.approx(300 / duration)
    assert value["total_tokens_per_s"] == pytest.approx((value["output_tokens"] + 3000) / duration)
    assert "goodput" not in value


def test_goodput_is_requests_in_time_by_the_duration() -> None:
    records, figures = made_up(300, seed=5)
    limit = float(np.percentile(figures["ttft_ms"], 60)) * 1e3
    goodput = summary(records, goodput=Goodput(ttft=limit))["goodput"]
    assert goodput["share"] == pytest.approx(0.6, abs=0.005)
    duration = max(record.ended for record in records) - records[0].sent
    assert goodput["requests_per_s"] == pytest.approx(goodput["share"] * 300 / duration)


def test_messages_of_several_tokens() -> None:
    record = Record(0.0, 1.0, [(2.0, 3), (4.0, 2)], 4.5)
    assert (record.num_tokens, record.ttft, record.latency, record.tpot, record.gaps) == (5, 1.0, 3.0, 0.5, [2.0])
    assert Record(0.0, 1.0, [(2.0, 1), (4.0, 1)], output_tokens=5).tpot == 0.5


def test_failures_are_counted_by_kind_and_have_no_times() -> None:
    fine = Record(0.0, 0.0, [(1.0, 1)], 1.0)
    records = [
        fine,
        Record(0.0, 0.0, [(9.0, 1)], 9.0, error="UNAVAILABLE"),
        Record(0.0, 0.0, [], 2.0, error="UNAVAILABLE"),
        Record(0.0, 0.0, [], 2.0),
    ]
    value = summary(records, goodput=Goodput(ttft=5000))
    assert value["failed"] == 3 and value["errors"] == {"UNAVAILABLE": 2, "no token came": 1}
    assert value["ttft_ms"]["p99"] == 1000 and value["goodput"]["share"] == 0.25
    assert records[2].ttft == records[2].latency == math.inf


def test_how_many_ran_at_once() -> None:
    spans = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (5.0, 6.0)]
    records = [Record(start, start, [], end) for start, end in spans]
    assert most_at_once(records) == 2
    assert summary(records)["concurrency"] == {"mean": pytest.approx(7 / 6), "max": 2}


def test_nothing_was_sent() -> None:
    value = summary([], goodput=Goodput())
    assert value["requests"] == value["duration_s"] == value["goodput"]["share"] == value["concurrency"]["max"] == 0
