"""The report, on times made up by hand; the loop that takes the times, on a fake engine."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.errors import DistaffError
from distaff.models.checkpoints import open_checkpoint
from distaff.models.config import ModelConfig
from distaff.models.families import config_from_hf
from distaff.serving import measurement
from distaff.serving.goodput import Goodput
from distaff.serving.limits import MachineLimits
from distaff.serving.measurement import RequestTimes, Round, report, run_round
from distaff.serving.metrics import Metrics
from distaff.serving.types import FinishReason, Request, SamplingParams, TokenEvent

LENGTH, ABORT, ERROR = FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR


def times(*tokens: float, reason: FinishReason | None = LENGTH) -> RequestTimes:
    return RequestTimes(10, 0.0, list(tokens), reason)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    golden = Path(__file__).resolve().parent.parent / "golden" / "llama31"
    return config_from_hf(open_checkpoint(golden).hf_config, source="llama31")


def snapshot(**phases: dict[str, float]) -> dict[str, Any]:
    shot = Metrics(max_batch=4, num_pages=1).snapshot()
    for name, counters in phases.items():
        shot[name].update(counters)
    return shot


def summed_up(rounds: list[Round], config: ModelConfig, **rest: Any) -> dict[str, Any]:
    limits = MachineLimits(bytes_per_s=1e6, flops_per_s=1e6)
    value = report(rounds, config=config, limits=limits, weight_bytes=4, kv_bytes=4, **rest)
    return json.loads(json.dumps(value, allow_nan=False))


def test_the_median_round_is_reported(config: ModelConfig) -> None:
    empty = snapshot()
    rounds = [Round((times(end / 2, end),), empty, empty, cpu_seconds=2 * end) for end in (5.0, 1.0, 3.0)]
    value = summed_up(rounds, config)
    assert value["cpu_s"] == 6.0
    assert value["elapsed_s"] == 3.0 and value["output_tokens_per_s"] == pytest.approx(2 / 3)
    assert [each["elapsed_s"] for each in value["rounds"]] == [5.0, 1.0, 3.0]
    assert summed_up(rounds[:2], config)["elapsed_s"] == 1.0


def test_failures_count_as_failures(config: ModelConfig) -> None:
    empty = snapshot()
    requests = (times(1.0, 2.0), times(reason=ERROR), times(0.5, reason=ABORT))
    value = summed_up([Round(requests, empty, empty)], config, goodput=Goodput(ttft=1500))
    assert (value["requests"], value["failed"], value["requests_per_s"]) == (3, 2, 0.5)
    assert value["goodput"] == {
        "ttft_ms": 1500,
        "tpot_ms": None,
        "e2el_ms": None,
        "requests_per_s": 0.5,
        "share": pytest.approx(1 / 3),
    }
    assert value["ttft_ms"]["p50"] == 1000 and value["itl_ms"]["p99"] == 1000


def test_nothing_came(config: ModelConfig) -> None:
    empty = snapshot()
    value = summed_up([Round((times(reason=ERROR),), empty, empty)], config)
    assert value["output_tokens_per_s"] == value["elapsed_s"] == value["requests_per_s"] == 0


def test_phases_are_the_differences_of_two_snapshots(config: ModelConfig) -> None:
    earlier = {"steps": 5, "seconds": 1.0, "tokens": 50, "drawn": 5, "rows": 5, "bucket_tokens": 100}
    later = {"steps": 7, "seconds": 1.5, "tokens": 80, "drawn": 9, "rows": 11, "bucket_tokens": 160}
    before, after = snapshot(prefill=earlier), snapshot(prefill=later)
    value = summed_up([Round((times(0.6, 0.7),), before, after)], config)
    assert value["prefill"]["tokens_per_s"] == 60 and value["prefill"]["steps"] == value["steps"] == 2
    assert value["prefill"]["mfu"] > 0 and value["prefill"]["mbu"] > 0
    assert value["prefill"]["bound"] in ("compute", "bandwidth")
    assert value["decode"]["tokens_per_s"] == 0 and value["decode"]["bound"] is None
    assert value["host_gap_ms_per_step"] == pytest.approx(100)
    assert value["padding_waste"] == pytest.approx(0.5) and value["batch_occupancy"] == pytest.approx(6 / 8)


class FakeStream:
    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.ready: list[TokenEvent] = []
        self.failure: DistaffError | None = None

    def poll(self) -> list[TokenEvent]:
        if self.failure is not None:
            raise self.failure
        ready, self.ready = self.ready, []
        return ready


class FakeEngine:
    """Gives every stream one token a step, each step a second; works at every second call."""

    def __init__(self, *, lazy: bool = False, dead: bool = False) -> None:
        self.metrics = Metrics(max_batch=4, num_pages=1)
        self.now = 0.0
        self.calls: list[str] = []
        self.streams: list[FakeStream] = []
        self._lazy, self._dead = lazy, dead

    def submit(self, request: Request) -> FakeStream:
        self.calls.append("submit")
        assert request.params.max_tokens is not None
        self.streams.append(FakeStream(request.params.max_tokens))
        return self.streams[-1]

    def flush(self) -> None:
        self.calls.append("flush")

    def step(self) -> bool:
        self.calls.append("step")
        if self._dead or (self._lazy and self.calls.count("step") % 2):
            self.now += 100.0 if self._dead else 0.0
            return False
        self.now += 1.0
        for stream in self.streams:
            if stream.left:
                stream.left -= 1
                stream.ready.append(TokenEvent(1, "", None if stream.left else LENGTH))
        return True


@pytest.fixture
def requests() -> list[Request]:
    return [Request((1, 2), SamplingParams(max_tokens=count)) for count in (1, 3)]


@pytest.mark.parametrize("lazy", [False, True])
def test_times_are_taken_as_events_come(requests: list[Request], lazy: bool) -> None:
    engine = FakeEngine(lazy=lazy)
    result = run_round(engine, requests, clock=lambda: engine.now)
    assert [each.tokens for each in result.requests] == [[1.0], [1.0, 2.0, 3.0]]
    assert [each.prompt_tokens for each in result.requests] == [2, 2]
    assert all(each.succeeded for each in result.requests)
    assert result.elapsed == 3.0 and result.output_tokens == 4
    assert engine.calls[:4] == ["submit", "submit", "flush", "step"]
    assert engine.calls.count("step") == (6 if lazy else 3)


def test_processor_time_is_that_of_the_steps(requests: list[Request]) -> None:
    engine = FakeEngine()

    def step() -> bool:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return FakeEngine.step(engine)

    engine.step = step
    start = time.process_time()
    result = run_round(engine, requests, clock=lambda: engine.now)
    assert 0.15 <= result.cpu_seconds <= time.process_time() - start


def test_a_request_that_fails_ends(requests: list[Request]) -> None:
    engine = FakeEngine()

    def step() -> bool:
        engine.streams[1].failure = DistaffError("the device failed")
        return FakeEngine.step(engine)

    engine.step = step
    result = run_round(engine, requests, clock=lambda: engine.now)
    assert [each.finish_reason for each in result.requests] == [LENGTH, ERROR]


def test_an_engine_that_says_nothing_is_given_up(requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_IDLE_SECONDS", 0)
    engine = FakeEngine(dead=True)
    with pytest.raises(DistaffError, match="2 requests wait"):
        run_round(engine, requests, clock=lambda: engine.now)


def test_nothing_to_run_takes_no_step() -> None:
    engine = FakeEngine()
    assert run_round(engine, []).elapsed == 0
    assert "step" not in engine.calls
