"""Calls over the fake model: refused, cut at every stage, drained, failed; and nothing stays held."""

import asyncio
import contextlib
import math
from random import Random
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.errors import ContextLengthError, DeviceError
from distaff.serving.front import (
    Call,
    CancelledByClientError,
    Chat,
    DeadlineError,
    DrainingError,
    DuplicateIdError,
    Event,
    Front,
    InvalidPromptError,
    ModelCard,
    NotReadyError,
    Reason,
    State,
    UnknownModelError,
)
from distaff.serving.replicas import Replicas

from ...fakes import continuation
from ..served import MAX_LEN, VOCAB, make_engine, serving, small_tokenizer
from .calls import ends, first_token, params, read, run, tokens_of, until_running


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


def test_whoever_waits_for_a_hung_device_is_told_to_ask_another_server() -> None:
    async def check() -> None:
        async with serving() as served:
            served.programs.gate.clear()
            stream = await served.front.open(Call("abc", params(4)))
            served.front.give_up()
            with pytest.raises(DrainingError, match="went down"):
                await stream.result()
            assert served.front.state is State.FAILED
            served.programs.gate.set()
            await asyncio.to_thread(served.engine.close)

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
            served.programs.step_seconds = 0.02  # 125 tokens: 2.5 seconds
            stream = await served.front.open(Call("abc", params(None), timeout=0.6))
            events = await read(stream)
            (end,) = ends(events)
            assert end.reason is Reason.DEADLINE and not end.reason.is_complete
            done = tokens_of(events)
            assert 0 < len(done) == stream.usage.completion_tokens and done == served.answer("abc", len(done))
            # A queue limit does not count any more once there is a slot.
            events = await read(await served.front.open(Call("abc", params(40), queue_timeout=0.5)))
            assert ends(events)[0].reason is Reason.LENGTH
            await served.check_empty()

    run(check())


def test_draining_lets_running_calls_finish_and_ends_the_rest() -> None:
    async def check() -> None:
        async with serving(slots=2) as served:
            states: list[State] = []
            served.front.on_state(states.append)
            served.programs.step_seconds = 0.02
            short = await served.front.open(Call("abc", params(5)))
            long = await served.front.open(Call("abc", params(None)))
            queued = await served.front.open(Call("abc", params(5)))
            await until_running(served, 2)
            draining = asyncio.create_task(served.front.drain(1.0))
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
                tokens, cut = random.randint(1, 6), random.randint(0, 9)
                stream = await served.front.open(Call((number, 5, 7), params(tokens), id=str(number)))
                events: list[Event] = []

                async def leave() -> None:
                    if len(events) == cut:
                        served.front.cancel(stream.id)
                        await stream.close()

                with contextlib.suppress(CancelledByClientError):
                    await leave()
                    async for event in stream:
                        events.append(event)
                        await leave()
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
