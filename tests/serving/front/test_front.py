"""Calls over the fake model: what streams say, how calls end, and that nothing stays held."""

import asyncio
import contextlib
import math
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.errors import ContextLengthError, DeviceError
from distaff.serving.front import (
    Admitted,
    Call,
    CancelledByClientError,
    Chat,
    DeadlineError,
    Delta,
    DrainingError,
    DuplicateIdError,
    Event,
    Finished,
    Front,
    FrontLimits,
    InvalidPromptError,
    ModelCard,
    NotReadyError,
    OverloadedError,
    Reason,
    State,
    Stream,
    TenantLimits,
    UnknownModelError,
)
from distaff.serving.replicas import Replicas
from distaff.serving.results import Completion, Embedding, Score
from distaff.serving.types import Kind, SamplingParams

from ...fakes import continuation
from ..served import EOS, MAX_LEN, VOCAB, Served, make_engine, serving, small_tokenizer


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def params(tokens: int | None = 8, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": tokens, "seed": 0, **fields})


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


def tokens_of(events: list[Event], index: int = 0) -> list[int]:
    deltas = [event for event in events if isinstance(event, Delta) and event.index == index]
    return [token for delta in deltas for token in delta.token_ids]


def ends(events: list[Event]) -> list[Finished]:
    return [event for event in events if isinstance(event, Finished)]


async def until_running(served: Served, count: int) -> None:
    while served.used_slots < count:
        await asyncio.sleep(0.002)


async def first_token(stream: Stream) -> None:
    async for event in stream:
        if isinstance(event, Delta):
            return


def test_a_stream_tells_admission_each_token_and_the_end() -> None:
    async def check() -> None:
        async with serving() as served:
            stream = await served.front.open(Call("hello", params(8), id="mine"))
            events = await read(stream)
            expected = served.answer("hello")
            assert isinstance(events[0], Admitted) and events[0].id == "mine" and events[0].prompt_tokens == 5
            assert events[0].params.max_tokens == 8 and events[0].params.seed == 0
            assert [len(event.token_ids) for event in events[1:-1] if isinstance(event, Delta)] == [1] * 8
            assert tokens_of(events) == expected
            assert "".join(e.text for e in events if isinstance(e, Delta)) == served.text(expected)
            assert events[-1] == Finished(0, Reason.LENGTH, None, 8)
            assert stream.usage.total_tokens == 13 and stream.timings.ttft > 0 and stream.outcome == "length"
            result = await stream.result()
            assert isinstance(result, Completion) and list(result.token_ids) == expected
            await served.check_empty()

    run(check())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tokens": 4}, Reason.LENGTH),
        ({"tokens": None}, Reason.CONTEXT_LIMIT),
        ({"tokens": 1000}, Reason.CONTEXT_LIMIT),
        ({"stop_token_ids": "third"}, Reason.STOP_TOKEN),
        ({"stop": "third"}, Reason.STOP_STRING),
    ],
)
def test_reasons_say_what_ended_an_answer(fields: dict[str, Any], reason: Reason) -> None:
    async def check() -> None:
        async with serving() as served:
            expected = served.answer("abc", 60)
            third = next(token for token in expected[2:] if token < 95 and expected.index(token) >= 2)
            values = dict(fields)
            if values.get("stop_token_ids"):
                values["stop_token_ids"] = (third,)
            if values.get("stop"):
                values["stop"] = (served.text([third]),)
            events = await read(await served.front.open(Call("abc", params(**values))))
            (finished,) = ends(events)
            assert finished.reason is reason and reason.is_complete
            if reason is Reason.STOP_TOKEN:
                assert finished.stopped_by == third
            if reason is Reason.STOP_STRING:
                assert finished.stopped_by == served.text([third])
            if reason is Reason.CONTEXT_LIMIT:
                admitted = events[0]
                assert isinstance(admitted, Admitted) and admitted.params.max_tokens == MAX_LEN - 3
                assert finished.completion_tokens == MAX_LEN - 3

    run(check())


def test_the_models_own_end_is_told_from_a_stop_token() -> None:
    async def check() -> None:
        async with serving(eos=True) as served:
            # Among many texts one draws the end token soon.
            prompts = ((number % 90, number // 90, 7) for number in range(200))
            prompt = next(prompt for prompt in prompts if EOS in served.answer(prompt, 20))
            (end,) = ends(await read(await served.front.open(Call(prompt, params(20)))))
            assert end.reason is Reason.EOS and end.stopped_by == EOS
            (end,) = ends(await read(await served.front.open(Call(prompt, params(20, stop_token_ids=(EOS,))))))
            assert end.reason is Reason.STOP_TOKEN

    run(check())


def test_choices_and_echo_add_up_to_the_result() -> None:
    async def check() -> None:
        async with serving() as served:
            stream = await served.front.open(Call("xyz", params(6, n=3, echo=True, logprobs=1)))
            events = await read(stream)
            result = await stream.result()
            assert isinstance(result, Completion) and len(ends(events)) == 3
            for choice in result.choices:
                deltas = [e for e in events if isinstance(e, Delta) and e.index == choice.index]
                assert "".join(delta.text for delta in deltas) == choice.text
                assert tokens_of(events, choice.index) == list(choice.token_ids)
                assert sum((delta.logprobs for delta in deltas), ()) == choice.logprobs
                assert list(choice.token_ids)[3:] == served.answer("xyz", 6, choice.index)
            assert stream.usage.completion_tokens == 18
            await served.check_empty()

    run(check())


def test_chat_scores_and_embeddings() -> None:
    async def check() -> None:
        async with serving() as served:
            front = served.front
            chat = Chat(({"role": "user", "content": "hi"},))
            rendered = "<|user|>hi<|end|><|assistant|>"
            assert await front.render(chat) == rendered
            ids = await front.tokenize(chat)
            assert ids == served.tokenizer.encode(rendered, add_special=False)
            assert await front.detokenize(ids) == rendered
            events = await read(await front.open(Call(chat, params(5))))
            assert tokens_of(events) == served.answer(ids, 5)
            score = await (await front.open(Call("score me", kind=Kind.SCORE))).result()
            assert isinstance(score, Score) and len(score.token_ids) == 8
            embedding = await (await front.open(Call("embed me", kind=Kind.EMBED))).result()
            assert isinstance(embedding, Embedding)
            await served.check_empty()

    run(check())


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Call(tuple(range(MAX_LEN))), ContextLengthError, "128 tokens"),
        (lambda: Call((5,) * 3_000_000), ContextLengthError, "3000000 tokens"),
        (lambda: Call((1, 10_000)), InvalidParameterError, "prompt"),
        (lambda: Call((1, -1)), InvalidParameterError, "prompt"),
        (lambda: Call("\ud800abc"), InvalidPromptError, "lone surrogate"),
        (lambda: Call("x" * 20_000), ContextLengthError, "20000"),
        (lambda: Call("a", priority=1000), InvalidParameterError, "priority"),
        (lambda: Call("a", timeout=math.nan), InvalidParameterError, "timeout"),
        (lambda: Call("a", queue_timeout=-1.0), InvalidParameterError, "queue_timeout"),
        (lambda: Call("a", id="x" * 300), InvalidParameterError, "id"),
        (lambda: Call(Chat(())), Exception, "messages"),
        (lambda: Call("a", model="other"), UnknownModelError, "expected one of those served: fake"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_stays(call: Any, error: type[Exception], says: str) -> None:
    async def check() -> None:
        async with serving(served_names=("fake",)) as served:
            with pytest.raises(error, match=says) as caught:
                await served.front.open(call())
            assert "/somewhere" not in str(caught.value)
            assert not served.front.streams()
            await served.check_empty()
            assert tokens_of(await read(await served.front.open(Call("a", params(3), model="fake")))) == (
                served.answer("a", 3)
            )

    run(check())


def test_an_id_that_lives_is_refused_and_may_come_again_later() -> None:
    async def check() -> None:
        async with serving() as served:
            served.programs.gate.clear()
            stream = await served.front.open(Call("a", params(4), id="twin"))
            with pytest.raises(DuplicateIdError, match="'twin' is running"):
                await served.front.open(Call("b", params(4), id="twin"))
            served.programs.gate.set()
            await read(stream)
            assert len(await read(await served.front.open(Call("b", params(4), id="twin")))) == 6

    run(check())


def test_cancel_at_every_stage_frees_everything() -> None:
    async def check() -> None:
        async with serving(slots=2, pages=64) as served:
            front = served.front
            served.programs.step_seconds = 0.002
            running = [await front.open(Call("abc", params(100), id=f"running-{i}")) for i in range(2)]
            for stream in running:
                await first_token(stream)
            queued = await front.open(Call("abc", params(100), id="queued"))
            assert front.load().waiting == 1 and front.load().running == 2
            assert front.cancel("queued") and not front.cancel("queued") and not front.cancel("never was")
            with pytest.raises(CancelledByClientError, match="queued"):
                await read(queued)
            assert served.programs.num_admitted == 2, "a cancelled request was given a slot"
            assert front.cancel("running-0")
            events = await read(running[0])
            (end,) = ends(events)
            assert end.reason is Reason.CANCELLED and running[0].usage.completion_tokens == end.completion_tokens > 0
            async with running[1]:
                pass  # leaving the block closes it
            assert ends(await read(running[1]))[0].reason is Reason.CANCELLED
            await served.check_empty()
            done = await front.open(Call("abc", params(2), id="done"))
            await read(done)
            assert not front.cancel("done")
            await done.close()
            assert front.counters.ended == {"cancelled": 3, "length": 1}

    run(check())


def test_a_deadline_that_passes_in_the_queue_costs_no_prefill() -> None:
    async def check() -> None:
        async with serving(slots=1) as served:
            served.programs.step_seconds = 0.02
            first = await served.front.open(Call("abc", params(100)))
            await first_token(first)

            async def answered(call: Call) -> list[Event]:
                return await read(await served.front.open(call))

            late = [Call("xyz", params(5), queue_timeout=0.05), Call("xyz", params(5), timeout=0.05)]
            late += [Call("xyz", params(5), timeout=0.001)] * 50 + [Call("xyz", timeout=0.0)]
            for error in await asyncio.gather(*map(answered, late), return_exceptions=True):
                assert isinstance(error, DeadlineError)
            assert served.programs.num_admitted == 1
            await first.close()
            await served.check_empty()

    run(check())


def test_a_deadline_in_decode_tells_what_was_done() -> None:
    async def check() -> None:
        async with serving() as served:
            served.programs.step_seconds = 0.002
            stream = await served.front.open(Call("abc", params(None), timeout=0.05))
            events = await read(stream)
            (end,) = ends(events)
            assert end.reason is Reason.DEADLINE and not end.reason.is_complete
            done = tokens_of(events)
            assert 0 < len(done) == stream.usage.completion_tokens and done == served.answer("abc", len(done))
            # A queue limit does not count any more once there is a slot.
            events = await read(await served.front.open(Call("abc", params(40), queue_timeout=0.05)))
            assert ends(events)[0].reason is Reason.LENGTH
            await served.check_empty()

    run(check())


def test_limits_refuse_with_a_time_to_come_back() -> None:
    async def check() -> None:
        limits = FrontLimits(
            max_streams=4, max_tokens_in_flight=120, tenants={"small": TenantLimits(max_streams=1, max_queued=1)}
        )
        async with serving(limits=limits) as served:
            served.programs.gate.clear()
            one = await served.front.open(Call("a", params(10), tenant="small"))
            with pytest.raises(OverloadedError, match="this client") as caught:
                await served.front.open(Call("a", params(10), tenant="small"))
            assert 0 < caught.value.retry_after <= 30
            two = await served.front.open(Call("a", params(100), tenant="other"))
            assert served.front.load().tokens_in_flight == 112
            with pytest.raises(OverloadedError, match="tokens in flight"):
                await served.front.open(Call("a", params(100)))
            three, four = [await served.front.open(Call("a", params(1))) for _ in range(2)]
            with pytest.raises(OverloadedError, match="the server has 4 calls under way"):
                await served.front.open(Call("a", params(1)))
            assert served.front.counters.refused == {"overloaded": 3}
            served.programs.gate.set()
            for stream in (one, two, three, four):
                await stream.result()
            await served.check_empty()
            await read(await served.front.open(Call("a", params(3), tenant="small")))

    run(check())


def test_a_slow_reader_is_bounded_then_ended_and_others_go_on() -> None:
    async def check() -> None:
        async with serving(limits=FrontLimits(max_buffered_events=4)) as served:
            joined = await served.front.open(Call("abc", params(60)))
            while not joined.ended:
                await asyncio.sleep(0.01)
            events = await read(joined)
            assert tokens_of(events) == served.answer("abc", 60) and len(events) < 10
        async with serving(limits=FrontLimits(max_buffered_events=4, stall_seconds=0.2)) as served:
            front = served.front
            served.programs.step_seconds = 0.02
            slow = await front.open(Call("abc", params(None)))
            await first_token(slow)
            while not slow.ended:
                other = await front.open(Call("xyz", params(3)))
                assert tokens_of(await read(other)) == served.answer("xyz", 3)
            events = await read(slow)
            assert ends(events)[0].reason is Reason.SLOW_READER and front.counters.stalled == 1
            assert tokens_of(events) == served.answer("abc", slow.usage.completion_tokens)[1:]
            await served.check_empty()

    run(check())


def test_a_round_wakes_the_loop_once_for_all_its_tokens() -> None:
    async def check() -> None:
        async with serving() as served:
            streams = [await served.front.open(Call((i, 2, 3), params(50))) for i in range(8)]
            await asyncio.gather(*map(read, streams))
            counters = served.front.counters
            assert counters.tokens == 400 and counters.items == 400 + 8 + 8
            assert counters.wakeups < 120, "one wake-up for each token would be 400"

    run(check())


def test_draining_lets_running_calls_finish_and_ends_the_rest() -> None:
    async def check() -> None:
        async with serving(slots=2) as served:
            states: list[State] = []
            served.front.on_state(states.append)
            served.programs.step_seconds = 0.005
            short = await served.front.open(Call("abc", params(5)))
            long = await served.front.open(Call("abc", params(None)))
            queued = await served.front.open(Call("abc", params(5)))
            await until_running(served, 2)
            draining = asyncio.create_task(served.front.drain(0.2))
            await asyncio.sleep(0)
            assert states == [State.DRAINING]
            with pytest.raises(DrainingError) as caught:
                await served.front.open(Call("abc"))
            assert caught.value.retry_after > 0
            await draining
            assert ends(await read(short))[0].reason is Reason.LENGTH
            assert ends(await read(queued))[0].reason is Reason.LENGTH
            (end,) = ends(await read(long))
            assert end.reason is Reason.DRAINED and long.usage.completion_tokens == end.completion_tokens > 5
            await served.check_empty()
        assert states == [State.DRAINING, State.CLOSED]

    run(check())


def test_cancelling_at_any_moment_frees_everything() -> None:
    """In the queue, in prefill, between steps, with the last token, behind the end; half of them twice."""

    async def check() -> None:
        random = Random(0)
        async with serving(slots=4) as served:
            served.programs.step_seconds = 0.0005

            async def one(number: int) -> None:
                stream = await served.front.open(Call((number, 5, 7), params(random.randint(1, 6)), id=str(number)))
                reading = asyncio.create_task(read(stream))
                await asyncio.sleep(random.uniform(0, 0.02))
                served.front.cancel(stream.id)
                await stream.close()
                with contextlib.suppress(CancelledByClientError):
                    events = await reading
                    assert ends(events)[0].reason in (Reason.CANCELLED, Reason.LENGTH)
                    assert tokens_of(events) == served.answer((number, 5, 7), 6)[: len(tokens_of(events))]

            await asyncio.gather(*map(one, range(60)))
            await served.check_empty()
            assert served.front.counters.ended["cancelled"] > 5 and served.front.counters.ended["length"] > 5

    run(check())


def test_a_step_that_fails_costs_its_own_calls_alone() -> None:
    async def check() -> None:
        async with serving(slots=2) as served:
            served.programs.gate.clear()
            streams = [await served.front.open(Call((number, 2), params(9))) for number in range(5)]
            served.programs.failure, served.programs.num_failures = RuntimeError("a bit flipped"), 1
            served.programs.gate.set()
            outcomes = await asyncio.gather(*map(read, streams), return_exceptions=True)
            failed = [outcome for outcome in outcomes if isinstance(outcome, DeviceError)]
            assert 1 <= len(failed) <= 2, "two slots: no more can have been in the step"
            for number, outcome in enumerate(outcomes):
                if not isinstance(outcome, DeviceError):
                    assert not isinstance(outcome, BaseException)
                    assert tokens_of(outcome) == served.answer((number, 2), 9)
            assert served.front.state is State.READY
            await served.check_empty()

    run(check())


def test_a_broken_device_fails_calls_and_the_front() -> None:
    async def check() -> None:
        async with serving() as served:
            states: list[State] = []
            served.front.on_state(states.append)
            served.programs.failure = RuntimeError("the chip is on fire")
            for _ in range(3):
                with pytest.raises(DeviceError):
                    await read(await served.front.open(Call("abc")))
            while served.front.state is not State.FAILED:
                await asyncio.sleep(0.01)
            with pytest.raises(DeviceError):
                await served.front.open(Call("abc"))
            assert states == [State.FAILED] and not served.front.streams()

    run(check())


def test_replicas_serve_behind_one_front() -> None:
    async def check() -> None:
        tokenizer = small_tokenizer()
        engines = [make_engine(tokenizer=tokenizer, slots=2)[0] for _ in range(2)]
        card = ModelCard("fake", "fake", vocab_size=tokenizer.vocab_size, context=MAX_LEN)
        async with Front(Replicas(engines), tokenizer=tokenizer, card=card) as front:
            prompts = [f"prompt number {number}" for number in range(6)]
            streams = [await front.open(Call(prompt, params(10))) for prompt in prompts]
            assert front.load().max_batch == 4 and front.load().pages_total == 512
            for prompt, events in zip(prompts, await asyncio.gather(*map(read, streams)), strict=True):
                ids = tokenizer.encode(prompt)
                text = continuation(ids, len(ids) + 10, 0, windows=(None,), vocab_size=VOCAB)
                assert tokens_of(events) == text[len(ids) :]
            assert all(engine.metrics.requests > 0 for engine in engines)
            cut = await front.open(Call("abc", params(None)))
            assert front.cancel(cut.id)
            with contextlib.suppress(CancelledByClientError):
                await read(cut)
            for engine in engines:
                engine.check_integrity()
                assert engine.num_requests == engine.scheduler.num_running == engine.pages[0] == 0
            assert await front.forget_prefixes() > 0

    run(check())


def test_a_front_that_has_not_started_refuses_and_a_closed_one_ends_its_calls() -> None:
    async def check() -> None:
        async with serving() as served:
            served.programs.step_seconds = 0.005
            stream = await served.front.open(Call("abc", params(None)))
            await until_running(served, 1)
        with pytest.raises(DrainingError):
            await served.front.open(Call("abc"))
        assert ends(await read(stream))[0].reason is Reason.DRAINED

    run(check())
    with pytest.raises(NotReadyError):
        run(_unstarted())


async def _unstarted() -> None:
    served = serving()
    async with served as one:
        one.front.state = State.STARTING
        await one.front.open(Call("abc"))
