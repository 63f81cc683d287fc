"""A whole measurement against a scripted server: what is sent in which phase."""

from pathlib import Path

import pytest

from distaff.serving.goodput import Goodput
from distaff.serving.load.run import Load, Work, measure, sweep
from distaff.serving.load.sweep import Plan

from ..client.scripted import Scripted, admitted, beside, delta, finished

ANSWER = [admitted(), delta("a", 1), finished(tokens=1)]


def test_a_run_does_not_find_what_its_warm_up_asked(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0, "prompt": "one", "max_tokens": 1}\n{"at": 0, "prompt": "two", "max_tokens": 1}\n')
    servicer, done = Scripted(ANSWER), list[tuple[int, int]]()

    def work(port: int) -> int:
        load = Load(f"127.0.0.1:{port}", Work(trace=trace), warm_up=1)
        report, records = measure(load, None, lambda *counts: done.append(counts))
        assert report["generator"]["cpu_us_per_message"] > 0
        return len(records)

    assert beside(servicer, work) == 2 and done == [(1, 2), (2, 2)]
    warm, *run = servicer.requests
    assert [request.text for request in servicer.requests] == ["one", "one", "two"]
    assert warm.cache.salt != run[0].cache.salt == run[1].cache.salt


@pytest.mark.slow
def test_rates_of_a_sweep_share_nothing() -> None:
    servicer = Scripted(ANSWER)

    def work(port: int) -> None:
        load = Load(f"127.0.0.1:{port}", Work(prompt_len=(4, 4), output_len=(1, 1)), warm_up=0)
        found = sweep(load, Plan(100, most=200, seconds=0.1), Goodput(ttft=60_000), on_rate=lambda _: lambda *_: None)
        assert [point["rate"] for point in found["points"]] == [100, 200]

    beside(servicer, work)
    assert len({request.cache.salt for request in servicer.requests}) == 2
    assert len({tuple(request.token_ids.ids) for request in servicer.requests}) == 36
