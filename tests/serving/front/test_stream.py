"""What a stream says of a call over the fake model, and how much of it is kept for a slow reader."""

import asyncio
from typing import Any

import pytest

from distaff.serving.front import (
    Admitted,
    Call,
    Chat,
    Delta,
    Finished,
    FrontLimits,
    Reason,
)
from distaff.serving.results import Completion, Embedding, Score
from distaff.serving.types import Kind

from ..served import EOS, MAX_LEN, serving
from .calls import ends, first_token, params, read, run, tokens_of


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
