"""distaff.v1.Inference over the fake model: what comes equals what the engine gives, and calls end everywhere."""

import asyncio
from typing import Any

import grpc
import pytest

from distaff.serving.front import FrontLimits
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2 as pb
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2

from .. import http2
from .compat import run, until
from .native import EOF, native, refusal, request

GENERATE = "/distaff.v1.Inference/Generate"


def tokens_of(events: list[pb.GenerateEvent], index: int = 0) -> list[int]:
    return [token for event in events if event.delta.index == index for token in event.delta.token_ids]


def text_of(events: list[pb.GenerateEvent], index: int = 0) -> str:
    return "".join(event.delta.text for event in events if event.delta.index == index)


async def collect(call: Any) -> list[pb.GenerateEvent]:
    return [event async for event in call]


async def interrupted(call: Any) -> tuple[list[pb.GenerateEvent], grpc.aio.AioRpcError]:
    """What came until the call failed."""
    events: list[pb.GenerateEvent] = []
    try:
        while (event := await call.read()) is not EOF:
            events.append(event)
    except grpc.aio.AioRpcError as error:
        return events, error
    raise AssertionError("it did not fail")


async def begun(call: Any) -> None:
    """Waits for the first tokens."""
    while (await call.read()).WhichOneof("event") != "delta":
        pass


def test_tokens_through_every_method_are_the_engines() -> None:
    async def check() -> None:
        async with native() as reached:
            expected = reached.served.answer("hello", 12)
            events = await collect(reached.inference.Generate(request(tokens=12, request_id="mine")))
            admitted, finished = events[0].admitted, events[-1].finished
            assert admitted.request_id == "mine" and admitted.prompt_tokens == 5 and admitted.effective.seed == 0
            assert admitted.effective.max_tokens == 12 and admitted.effective.temperature == 1.0
            assert tokens_of(events) == expected and text_of(events) == reached.served.text(expected)
            assert len(events) == 14, "a message for each token"
            assert finished.reason == pb.FINISH_REASON_LENGTH and finished.completion_tokens == 12
            assert finished.usage.prompt_tokens == 5 and finished.usage.completion_tokens == 12
            assert finished.timings.first_token_seconds > 0

            unary = await reached.inference.GenerateUnary(request(tokens=12, sampling={"n": 2, "logprobs": 1}))
            assert list(unary.choices[0].token_ids) == expected
            assert list(unary.choices[1].token_ids) == reached.served.answer("hello", 12, seed=1)
            assert unary.choices[0].text == reached.served.text(expected) and len(unary.choices[0].logprobs) == 12

            items = [{"key": text, "request": request(text, 12)} for text in ("hello", "hallo", "salut")]
            batch: dict[str, list[pb.GenerateEvent]] = {}
            async for event in reached.inference.GenerateBatch(inference_pb2.GenerateBatchRequest(items=items)):
                batch.setdefault(event.key, []).append(event.event)
            for text, answered in batch.items():
                assert tokens_of(answered) == reached.served.answer(text, 12), text
                assert answered[-1].WhichOneof("event") == "finished"
            assert batch.keys() == {"hello", "hallo", "salut"}

    run(check())


def test_outputs_are_cut_as_asked() -> None:
    async def check() -> None:
        async with native() as reached:
            expected = reached.served.answer("hello", 10)
            call = reached.inference.Generate(request(tokens=10, output={"chunk_tokens": 4, "omit_text": True}))
            events = await collect(call)
            assert [len(event.delta.token_ids) for event in events[1:-1]] == [4, 4, 2]
            assert tokens_of(events) == expected and text_of(events) == ""
            events = await collect(reached.inference.Generate(request(tokens=10, output={"omit_token_ids": True})))
            assert tokens_of(events) == [] and text_of(events) == reached.served.text(expected)

    run(check())


def test_every_sampling_parameter_arrives() -> None:
    """What is set comes back as effective, so none is dropped on the way."""

    async def check() -> None:
        async with native() as reached:
            sampling = pb.SamplingParams(
                max_tokens=5, min_tokens=1, temperature=0.7, top_k=5, top_p=0.9, min_p=0.05, typical_p=0.8,
                repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.3, logit_bias={3: 1.5},
                bad_words=["zq"], allowed_token_ids={"ids": list(range(50))}, stop=["##"], stop_token_ids=[9],
                ignore_eos=True, n=1, seed=2**63 + 5, logprobs=2, prompt_logprobs=1, echo=True,
            )  # fmt: skip
            assert {field.name for field, _ in sampling.ListFields()} == {f.name for f in sampling.DESCRIPTOR.fields}
            call = pb.GenerateRequest(text="hello", sampling=sampling)
            result = await reached.inference.GenerateUnary(call)
            assert result.effective == sampling and len(result.prompt_logprobs) == 4
            assert result.choices[0].text.startswith("hello")
            whole = await reached.inference.GenerateUnary(request(sampling={"max_tokens": 0}))
            assert whole.choices[0].reason == pb.FINISH_REASON_CONTEXT_LIMIT and whole.usage.completion_tokens == 123

    run(check())


def test_scores_embeddings_and_chat() -> None:
    async def check() -> None:
        async with native() as reached:
            score = await reached.inference.Score(inference_pb2.ScoreRequest(text="abc", num_top=1))
            ids = reached.served.tokenizer.encode("abc")
            assert list(score.token_ids) == ids and len(score.logprobs) == 2
            assert score.total == pytest.approx(-sum((token + 1) / 16 for token in ids[1:]))
            vector = await reached.inference.Embed(
                inference_pb2.EmbedRequest(token_ids={"ids": [3, 4, 8]}, pooling="POOLING_LAST")
            )
            assert list(vector.embedding) == [8.0, 2.0]
            chat = {"messages": [{"role": "user", "content": "hi"}]}
            answer = await reached.inference.GenerateUnary(request(chat=chat, tokens=4))
            rendered = reached.served.tokenizer.encode("<|user|>hi<|end|><|assistant|>", add_special=False)
            assert list(answer.choices[0].token_ids) == reached.served.answer(rendered, 4)

    run(check())


def test_cancel_and_disconnect_free_everything() -> None:
    async def check() -> None:
        async with native(slots=2) as reached:
            served = reached.served
            served.programs.step_seconds = 0.002
            calls = [reached.inference.Generate(request(tokens=110, request_id=f"r{i}")) for i in range(2)]
            for call in calls:
                await begun(call)
            queued = reached.inference.Generate(request(tokens=110, request_id="queued"))
            await until(lambda: served.front.load().waiting == 1)
            asked = inference_pb2.CancelRequest(request_ids=["queued", "nobody", "r0", "r0"])
            states = (await reached.inference.Cancel(asked)).states
            cancelled, unknown = inference_pb2.CANCEL_STATE_CANCELLED, inference_pb2.CANCEL_STATE_UNKNOWN
            assert list(states) == [cancelled, unknown, cancelled, unknown]
            events, error = await interrupted(calls[0])
            assert error.code() is grpc.StatusCode.CANCELLED
            assert events[-1].finished.reason == pb.FINISH_REASON_CANCELLED
            assert events[-1].finished.usage.completion_tokens == events[-1].finished.completion_tokens > 0
            assert (await refusal(queued)).code == "CANCELLED"
            calls[1].cancel()  # a client that goes away
            await served.check_empty()
            assert served.programs.num_admitted == 2
            async with grpc.aio.insecure_channel(reached.target) as channel:
                serializer = pb.GenerateRequest.SerializeToString
                gone: Any = channel.unary_stream(GENERATE, request_serializer=serializer)(request(tokens=110))
                await gone.read()
            await served.check_empty()
            assert served.front.counters.ended["cancelled"] == 4
            items = [{"key": str(number), "request": request(f"text {number}", 100)} for number in range(20)]
            batch = reached.inference.GenerateBatch(inference_pb2.GenerateBatchRequest(items=items))
            await batch.read()
            batch.cancel()  # all that runs and waits of it

    run(check())


def test_deadlines_in_the_queue_and_in_decode() -> None:
    async def check() -> None:
        async with native(slots=1) as reached:
            served = reached.served
            served.programs.step_seconds = 0.002
            first = reached.inference.Generate(request(tokens=120))
            await begun(first)
            late = [
                reached.inference.Generate(request(queue_timeout_seconds=0.03)),
                reached.inference.GenerateUnary(request(total_timeout_seconds=0.03)),
                reached.inference.Generate(request(), timeout=0.03),
                *(reached.inference.GenerateUnary(request(), timeout=0.001) for _ in range(50)),
            ]
            for ended in await asyncio.gather(*map(refusal, late)):
                assert ended.code == "DEADLINE_EXCEEDED"
            assert served.programs.num_admitted == 1, "a request whose time was over was given a slot"
            first.cancel()
            await served.check_empty()
            call = reached.inference.Generate(request(tokens=120, total_timeout_seconds=0.08))
            events, error = await interrupted(call)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            finished = events[-1].finished
            assert finished.reason == pb.FINISH_REASON_DEADLINE and finished.usage.completion_tokens > 0
            done = tokens_of(events)
            assert done == served.answer("hello", len(done)) and len(done) == finished.completion_tokens
            assert (await refusal(reached.inference.GenerateUnary(request(tokens=120), timeout=0.05))).code == (
                "DEADLINE_EXCEEDED"
            )

    run(check())


def test_items_of_a_batch_fail_alone_and_wait_for_their_places() -> None:
    async def check() -> None:
        async with native(limits=FrontLimits(max_streams=2, retry_after=0.02)) as reached:
            items = [{"key": f"k{i}", "request": request("hello", 4)} for i in range(12)]
            items += [{"key": "bad", "request": request("hello", 4, sampling={"temperature": -1.0})}]
            ends: dict[str, Any] = {}
            async for event in reached.inference.GenerateBatch(inference_pb2.GenerateBatchRequest(items=items)):
                if event.WhichOneof("outcome") == "error" or event.event.WhichOneof("event") == "finished":
                    assert event.key not in ends
                    ends[event.key] = event
            assert len(ends) == 13
            bad = ends.pop("bad").error
            assert bad.code == "INVALID_ARGUMENT" and bad.field == "temperature"
            assert all(end.event.finished.completion_tokens == 4 for end in ends.values())
            for wrong in ([], [{"key": "", "request": request()}], [{"key": "a"}, {"key": "a"}]):
                call = reached.inference.GenerateBatch(inference_pb2.GenerateBatchRequest(items=wrong))
                assert (await refusal(call)).code == "INVALID_ARGUMENT"

    run(check())


def test_a_reader_that_stops_is_ended_and_the_others_notice_nothing() -> None:
    async def check() -> None:
        limits = FrontLimits(max_buffered_events=4, stall_seconds=0.3)
        async with native(limits=limits, max_len=1024, pages=2048, slots=4) as reached:
            served = reached.served
            served.programs.step_seconds = 0.002
            message = request(tokens=1000, request_id="slow").SerializeToString()
            with http2.Connection(reached.server.port) as connection:
                # A window of nothing: the server can send no message.
                connection.send(http2.settings(window=0) + http2.unary(GENERATE, message))
                await until(lambda: served.front.load().running == 1)
                while served.front.counters.stalled == 0:
                    other = await reached.inference.GenerateUnary(request("other", 3))
                    assert list(other.choices[0].token_ids) == served.answer("other", 3)
                await served.check_empty()
                assert served.front.counters.ended["slow_reader"] == 1
                # Once it reads again, it gets what had come, and is told.
                connection.send(http2.settings(window=2**20))
                frames = await asyncio.to_thread(connection.answer)
                trailers = [each.payload for each in frames if each.kind == http2.HEADERS]
                assert b"grpc-status\x018" in trailers[-1], f"{[each[:2] for each in frames]}"

    run(check())
