"""The engine on a model whose tokens are computed by hand: streams, aborts, failures, threads, and what it counts."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.models.step import StepBatch, StepOutput
from distaff.serving import (
    CacheTooSmallError,
    ContextLengthError,
    DeviceError,
    Engine,
    EngineClosedError,
    EngineConfig,
    FinishReason,
    Kind,
    Request,
    SamplingParams,
)
from distaff.serving.plan import Bucket

from ..fakes import FakePrograms, continuation, prompt_logprob

VOCAB, PAGE, SLOTS, MAX_LEN = 101, 4, 8, 64
BUCKETS = (
    Bucket(1, 1, "decode"), Bucket(8, 8, "decode"), Bucket(16, 8, "mixed"), Bucket(32, 8, "mixed"),
    Bucket(32, 8, "prompt"),
)  # fmt: skip


class Breaking(FakePrograms):
    """Fails in the steps that are named."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.count, self.breaks = 0, set[int]()
        super().__init__(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        self.count += 1
        if self.count in self.breaks:
            raise RuntimeError("the chip is on fire")
        return super().step(bucket, batch)


def make(pages: int = 64, *, eos: int | None = None, **config: object) -> tuple[Engine, Breaking]:
    device = Breaking(
        BUCKETS, num_slots=SLOTS, max_len=MAX_LEN, page_size=PAGE, num_pages=(pages,), windows=(None,), vocab_size=VOCAB
    )
    settings = EngineConfig(**{"max_batch": SLOTS, "max_step_tokens": 32, **config})
    eos_ids = frozenset() if eos is None else frozenset([eos])
    return Engine(device, settings, vocab_size=VOCAB, eos_ids=eos_ids), device


@pytest.fixture
def engine() -> Iterator[Engine]:
    made, _ = make()
    with made:
        yield made
        made.check_integrity()


def request(*prompt: int, tokens: int = 8, **fields: object) -> Request:
    options = {name: fields.pop(name) for name in ("priority", "kind", "pooling") if name in fields}
    params = (
        SamplingParams(**{"max_tokens": tokens, "seed": 0, **fields}) if "kind" not in options else SamplingParams()
    )
    return Request(prompt, params, **options)  # pyright: ignore[reportArgumentType]


def answer(prompt: tuple[int, ...], tokens: int = 8, eos: int | None = None) -> list[int]:
    text = continuation(prompt, len(prompt) + tokens, 0, windows=(None,), vocab_size=VOCAB, eos=eos)
    return text[len(prompt) :]


def used_pages(engine: Engine) -> int:
    """Pages in use, those that the prefix cache could give back apart."""
    tables = engine.scheduler.tables
    return sum(tables.num_pages) - sum(tables.cache.available(g) for g in range(len(tables.num_pages)))


def test_a_stream_yields_each_token_and_a_result(engine: Engine) -> None:
    generation = engine.submit(request(1, 2, 3))
    events = list(generation)
    assert [event.token_id for event in events] == answer((1, 2, 3))
    assert [event.finish_reason for event in events] == [None] * 7 + [FinishReason.LENGTH]
    result = generation.completion()
    assert list(result.token_ids) == answer((1, 2, 3)) and result.usage.total_tokens == 11
    assert result.timings.ttft > 0 and result.timings.decoded_tokens == 7


def test_an_end_token_ends_a_text_in_the_middle_of_a_call(engine: Engine) -> None:
    eos = answer((5,))[3]
    made, _ = make(eos=eos)
    with made:
        result = made.submit(request(5)).completion()
    cut = answer((5,)).index(eos)
    assert list(result.token_ids) == answer((5,))[: cut + 1] and result.finish_reason is FinishReason.STOP


def test_choices_share_their_prompt(engine: Engine) -> None:
    prompt = tuple(range(30))
    result = engine.submit(request(*prompt, n=3)).completion()
    assert [choice.index for choice in result.choices] == [0, 1, 2]
    for choice in result.choices:  # the fake model adds the choice to the seed
        text = continuation(prompt, 38, choice.index, windows=(None,), vocab_size=VOCAB)
        assert list(choice.token_ids) == text[30:]
    assert engine.metrics.prefill.prompt_tokens < 2 * 30


def test_usage_tells_what_the_prefix_cache_held(engine: Engine) -> None:
    prompt = tuple(range(20))
    first, second = (engine.submit(request(*prompt)).completion().usage for _ in range(2))
    salted = engine.submit(Request(prompt, SamplingParams(max_tokens=2, seed=0), cache_salt="mine")).completion().usage
    assert (first.cached_tokens, second.cached_tokens, salted.cached_tokens) == (0, 19, 0)
    assert engine.metrics.snapshot()["prefix_hit_tokens"] == 19


def test_a_score_and_an_embedding_come_from_the_whole_prompt(engine: Engine) -> None:
    prompt = tuple(range(40))
    engine.submit(request(*prompt)).completion()  # what the prefix cache holds must not be skipped
    score, embedding = engine.generate([request(*prompt, kind=Kind.SCORE), request(*prompt, kind=Kind.EMBED)])
    assert score.logprobs.logprobs.tolist() == [prompt_logprob(token) for token in prompt[1:]]  # pyright: ignore[reportAttributeAccessIssue]
    assert embedding.vector.tolist() == [19.5, 19.5]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("steps", range(8))
def test_an_abort_frees_everything_within_a_step(engine: Engine, steps: int) -> None:
    """Queued, in its prompt, between steps, at the last token."""
    others = [engine.submit(request(i, 9, tokens=60)) for i in range(3)]
    victim = engine.submit(request(*range(40), tokens=6))
    for _ in range(steps):
        engine.step()
    victim.close()
    engine.step()
    assert [live.request.prompt for live in engine._live.by_sequence.values()] == [(0, 9), (1, 9), (2, 9)]
    result = victim.completion()
    assert result.finish_reason is FinishReason.ABORT or len(result.token_ids) == 6
    assert list(result.token_ids) == answer(tuple(range(40)), 6)[: len(result.token_ids)]
    for i, other in enumerate(others):
        assert list(other.completion().token_ids) == answer((i, 9), 60)
    engine.step()
    assert used_pages(engine) == 0 and len(engine.scheduler.roster.free_slots) == SLOTS


def test_dropping_a_stream_ends_its_request(engine: Engine) -> None:
    generation = engine.submit(request(1, tokens=50))
    next(generation)
    del generation
    gc.collect()
    engine.step()
    assert engine.num_requests == 0 and used_pages(engine) == 0


def test_what_can_never_fit_is_refused_with_the_numbers(engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="64 tokens.*holds 64.*at most 63"):
        engine.submit(request(*range(64)))
    with pytest.raises(InvalidParameterError, match=r"prompt is 101, expected token ids from 0 to 100"):
        engine.submit(request(101))
    small, _ = make(pages=5)
    with (
        small,
        pytest.raises(CacheTooSmallError, match=r"prompt and answer take 40 tokens, that is \(10,\) pages.*\(5,\)"),
    ):
        small.submit(request(*range(10), tokens=30))


def test_trouble_of_one_request_is_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = engine.submit(request(1, 2)), engine.submit(request(3, 4))
    engine.step()
    live = next(live for live in engine._live.by_sequence.values() if live.request.prompt == (3, 4))
    monkeypatch.setattr(live._output.choices[0], "add", lambda *_: 1 / 0)
    assert list(good.completion().token_ids) == answer((1, 2))
    with pytest.raises(ZeroDivisionError):
        list(bad)
    assert used_pages(engine) == 0 and engine.metrics.outcomes == {"length": 1, "error": 1}


@pytest.mark.parametrize("breaks", [1, 2, 3, 4, 5])
def test_after_a_failed_step_its_requests_fail_and_the_others_are_computed_anew(breaks: int) -> None:
    engine, device = make()
    with engine:
        device.breaks = {breaks}
        running = [engine.submit(request(i, 1, 2, tokens=60)) for i in range(SLOTS)]
        waiting = [engine.submit(request(i, 7, tokens=20)) for i in range(SLOTS)]
        for generation in running:
            with pytest.raises(DeviceError, match="the chip is on fire"):
                generation.completion()
        for i, generation in enumerate(waiting):
            assert list(generation.completion().token_ids) == answer((i, 7), 20)
        engine.check_integrity()
        assert used_pages(engine) == 0


def test_a_device_that_keeps_failing_is_given_up() -> None:
    engine, device = make()
    device.breaks = set(range(100))
    generations = [engine.submit(request(i)) for i in range(50)]
    for generation in generations:
        with pytest.raises(DeviceError):
            generation.completion()
    with pytest.raises(DeviceError, match="lost its device.*make a new one"):
        engine.submit(request(1))
    engine.close()


def test_closing_ends_requests_thread_and_cache() -> None:
    engine, device = make()
    engine.start()
    generation = engine.submit(request(1, tokens=60))
    next(generation)
    before = threading.active_count()
    engine.close()
    engine.close()
    assert threading.active_count() == before - 1 and device._cache == []
    with pytest.raises(EngineClosedError):
        list(generation)
    with pytest.raises(EngineClosedError, match="make a new one"):
        engine.submit(request(1))


def test_many_threads_may_submit_and_read() -> None:
    engine, _ = make()
    wrong: list[int] = []

    def client(number: int) -> None:
        for i in range(10):
            prompt = (number, i, 3)
            generation = engine.submit(request(*prompt, tokens=9))
            if i % 4 == 3:
                next(generation)
                generation.close()
            elif list(generation.completion().token_ids) != answer(prompt, 9):
                wrong.append(number)

    engine.start()
    with engine:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 10
        while engine.num_requests and time.monotonic() < deadline:
            time.sleep(0.01)
        engine.check_integrity()
        assert not wrong and used_pages(engine) == 0


def test_a_static_batch_waits_for_company_and_a_reader_ends_the_wait() -> None:
    engine, _ = make(policy="static")
    with engine:
        first = engine.submit(request(1))
        assert not engine.step() and engine.num_requests == 1
        others = [engine.submit(request(i)) for i in range(2, SLOTS + 1)]
        assert engine.step()
        late = engine.submit(request(50))
        assert [list(g.completion().token_ids) for g in (first, *others)] == [answer((i,)) for i in range(1, SLOTS + 1)]
        assert list(late.completion().token_ids) == answer((50,))


def test_priorities_run_first(engine: Engine) -> None:
    rows = [engine.submit(request(i, tokens=40)) for i in range(SLOTS)]
    engine.step()
    low, high = engine.submit(request(90, tokens=40, priority=5)), engine.submit(request(91, tokens=40, priority=1))
    for generation in (*rows, low, high):
        generation.completion()
    assert high.completion().timings.queue <= low.completion().timings.queue


def test_decode_runs_many_steps_in_a_call_and_counts_them(engine: Engine) -> None:
    engine.submit(request(1, tokens=33)).completion()
    decode = engine.metrics.decode
    assert decode.steps == 32 and decode.calls <= 6 and engine.metrics.output_tokens == 33


def test_a_burst_is_no_longer_than_its_target() -> None:
    engine, _ = make(target_burst=0.0)
    with engine:
        engine.submit(request(1, tokens=33)).completion()
        assert engine.metrics.decode.calls >= 25
