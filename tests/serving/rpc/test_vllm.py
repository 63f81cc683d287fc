"""vllm.grpc.engine.VllmEngine over the fake model: what clients of it get, and that nothing stays held."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from distaff.models.tokenizer import Tokenizer
from distaff.serving.rpc.profiler import Profiler
from distaff.serving.rpc.vllm import VllmEngine

from ...fakes import prompt_logprob
from ..served import MAX_LEN, VOCAB, Served
from .compat import reaching, refused, run, until


@asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[tuple[Served, Any]]:
    async with reaching(VllmEngine, **options) as reached:
        yield reached.served, vllm_engine_pb2_grpc.VllmEngineStub(reached.channel)


def ask(
    text: str = "abc", *, stream: bool = False, tokens: int = 8, id: str = "", **sampling: Any
) -> pb.GenerateRequest:
    params = pb.SamplingParams(**{"max_tokens": tokens, "seed": 0, "ignore_eos": True, **sampling})
    return pb.GenerateRequest(request_id=id, text=text, sampling_params=params, stream=stream)


async def read(stub: Any, request: pb.GenerateRequest) -> tuple[list[Any], list[Any]]:
    """Chunks and complete messages."""
    messages = [message async for message in stub.Generate(request)]
    chunks = [message.chunk for message in messages if message.HasField("chunk")]
    return chunks, [message.complete for message in messages if message.HasField("complete")]


def test_tokens_are_the_engines() -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            expected = served.answer("abc")
            chunks, (whole,) = await read(stub, ask(stream=True))
            assert [list(chunk.token_ids) for chunk in chunks] == [[token] for token in expected]
            assert {(chunk.prompt_tokens, chunk.completion_tokens) for chunk in chunks} == {(3, 1)}
            assert list(whole.output_ids) == expected and whole.finish_reason == "length"
            assert (whole.prompt_tokens, whole.completion_tokens) == (3, 8)
            assert whole.WhichOneof("matched_stop") is None

            tokens = ask()
            tokens.tokenized.input_ids.extend(served.tokenizer.encode("abc"))
            none, (alone,) = await read(stub, tokens)
            assert not none and list(alone.output_ids) == expected and alone.cached_tokens == 2  # of the first one's

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_choices_come_beside_each_other_by_index(stream: bool) -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            chunks, wholes = await read(stub, ask(n=3, stream=stream))
            assert sorted(whole.index for whole in wholes) == [0, 1, 2]
            for whole in wholes:
                expected = served.answer("abc", seed=whole.index)
                assert list(whole.output_ids) == expected and whole.completion_tokens == 8
                drawn = [token for chunk in chunks if chunk.index == whole.index for token in chunk.token_ids]
                assert drawn == (expected if stream else [])
            if stream:  # none waits for another
                assert {chunk.index for chunk in chunks[:3]} == {0, 1, 2}

    run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(stream: bool) -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            chunks, (whole,) = await read(stub, ask(stream=stream, logprobs=2, prompt_logprobs=0))
            expected, prompt = served.answer("abc"), served.tokenizer.encode("abc")
            assert [chunk.HasField("input_logprobs") for chunk in chunks] == [True, *[False] * 7][: len(chunks)]
            for of_prompt in (whole.input_logprobs, *(chunk.input_logprobs for chunk in chunks[:1])):
                assert list(of_prompt.token_ids) == prompt and not of_prompt.top_logprobs
                values = of_prompt.token_logprobs
                assert not values[0].HasField("value")
                assert [entry.value for entry in values[1:]] == [prompt_logprob(token) for token in prompt[1:]]
            for logprobs in (whole.output_logprobs, *(chunk.output_logprobs for chunk in chunks)):
                assert list(logprobs.token_logprobs) == [prompt_logprob(token) for token in logprobs.token_ids]
                assert [len(top.token_ids) for top in logprobs.top_logprobs] == [2] * len(logprobs.token_ids)
            assert list(whole.output_logprobs.token_ids) == expected
            assert [list(chunk.output_logprobs.token_ids) for chunk in chunks] == [[t] for t in expected if stream]
            _, (without,) = await read(stub, ask(stream=stream))
            assert not without.HasField("output_logprobs") and not without.HasField("input_logprobs")

    run(test())


def test_why_it_ended() -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            expected = served.answer("abc")
            _, (by_text,) = await read(stub, ask(stop=[served.text(expected[2:3])]))
            assert (by_text.finish_reason, by_text.matched_stop_str) == ("stop", served.text(expected[2:3]))
            assert list(by_text.output_ids) == expected[:3]  # what spells the stop text is among them
            _, (by_token,) = await read(stub, ask(stop_token_ids=[expected[1]]))
            assert (by_token.finish_reason, by_token.matched_token_id) == ("stop", expected[1])
            _, (full,) = await read(stub, ask("a" * (MAX_LEN - 2)))
            assert full.finish_reason == "length" and full.completion_tokens == 2

    run(test())


def test_the_end_of_the_prompt_alone() -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            _, (end,) = await read(stub, ask("a" * 1000 + "bc", truncate_prompt_tokens=3))
            assert list(end.output_ids) == served.answer("abc") and end.prompt_tokens == 3
            _, (most,) = await read(stub, ask("a" * 1000, truncate_prompt_tokens=-1))
            assert most.prompt_tokens == MAX_LEN - 1 and most.completion_tokens == 1

    run(test())


def test_embeddings() -> None:
    async def test() -> None:
        async with engine() as (_, stub):
            answer = await stub.Embed(pb.EmbedRequest(tokenized=pb.TokenizedInput(input_ids=[3, 5, 7])))
            assert list(answer.embedding) == [5.0, 1.0]  # means of tokens and positions: the fake's hidden states
            assert (answer.prompt_tokens, answer.embedding_dim) == (3, 2)

    run(test())


@pytest.mark.parametrize("how", ["abort", "cancel", "disconnect"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_ended_early_holds_nothing(how: str, stream: bool) -> None:
    async def test() -> None:
        async with reaching(VllmEngine) as reached:
            served, stub = reached.served, vllm_engine_pb2_grpc.VllmEngineStub(reached.channel)
            served.programs.step_seconds = 0.005
            reading = asyncio.create_task(read(stub, ask(id="mine", tokens=100, stream=stream)))
            await until(lambda: served.used_slots and served.used_pages)
            if how == "abort":
                await stub.Abort(pb.AbortRequest(request_ids=["mine", "nobody's", "mine"]))
                _, (whole,) = await reading
                assert whole.finish_reason == "abort" and whole.completion_tokens < 100
            elif how == "cancel":
                reading.cancel()
            else:
                await reached.channel.close()
            await asyncio.gather(reading, return_exceptions=True)
            await served.check_empty()

    run(test())


def test_errors_have_their_codes() -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            for request, words in (
                (ask(""), ["prompt"]),
                (ask("a" * 200), ["200", "128"]),
                (ask(regex="a"), ["sampling_params.regex", "structured output"]),
                (pb.GenerateRequest(tokenized=pb.TokenizedInput(input_ids=[VOCAB * 10])), ["1010"]),
                (pb.GenerateRequest(tokenized=pb.TokenizedInput()), ["prompt"]),
            ):
                async with refused("INVALID_ARGUMENT", *words):
                    await read(stub, request)
            served.programs.gate.clear()
            first = asyncio.create_task(read(stub, ask(id="twice")))
            await until(served.front.streams)
            async with refused("ALREADY_EXISTS", "twice"):
                await read(stub, ask(id="twice"))
            async with refused("DEADLINE_EXCEEDED"):
                await stub.Embed(pb.EmbedRequest(tokenized=pb.TokenizedInput(input_ids=[1])), timeout=0.05)
            served.programs.gate.set()
            await first
            async with refused("UNIMPLEMENTED", "GetLoads"):
                await stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()).read()
            async with refused("INVALID_ARGUMENT", "dp_rank"):
                await stub.GetLoads(pb.GetLoadsRequest(dp_rank=1))
            await served.front.drain(0)
            async with refused("UNAVAILABLE"):
                await read(stub, ask())
            assert not (await stub.HealthCheck(pb.HealthCheckRequest())).healthy

    run(test())


def test_what_it_says_of_itself() -> None:
    async def test() -> None:
        async with engine(served_names=("nick", "name"), eos=True) as (served, stub):
            health = await stub.HealthCheck(pb.HealthCheckRequest())
            assert health.healthy and health.message == "ready"
            model = await stub.GetModelInfo(pb.GetModelInfoRequest())
            assert (model.served_model_name, model.max_context_length) == ("nick", MAX_LEN)
            assert model.vocab_size == served.tokenizer.vocab_size
            assert list(model.eos_token_ids) == sorted(served.front.card.eos_ids) and model.is_generation
            served.programs.gate.clear()
            waiting = asyncio.create_task(read(stub, ask()))
            await until(served.front.streams)
            server = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert server.active_requests == 1 and server.max_num_seqs == 8 and server.uptime_seconds > 0
            (load,) = (await stub.GetLoads(pb.GetLoadsRequest(dp_rank=0, include=["core"]))).loads
            assert load.num_total_reqs == load.num_running_reqs + load.num_waiting_reqs == 1
            assert load.max_running_requests == 8 and 0 <= load.token_usage <= 1
            served.programs.gate.set()
            await waiting

    run(test())


def test_the_tokenizer_arrives_whole(tmp_path: Path) -> None:
    async def test() -> None:
        async with engine() as (served, stub):
            request = common_pb2.GetTokenizerRequest()
            chunks = [chunk async for chunk in stub.GetTokenizer(request)]
            data = b"".join(chunk.data for chunk in chunks)
            assert [chunk.sha256 for chunk in chunks] == [*[""] * (len(chunks) - 1), hashlib.sha256(data).hexdigest()]
            zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path)
            read_back = Tokenizer.from_folder(tmp_path)
            assert read_back.encode("abc<|end|>") == served.tokenizer.encode("abc<|end|>")
            chat = [{"role": "user", "content": "hello"}]
            assert read_back.render_chat(chat) == served.tokenizer.render_chat(chat)
        async with engine(with_text=False) as (_, stub), refused("INVALID_ARGUMENT", "no tokenizer"):
            await stub.GetTokenizer(request).read()

    run(test())


def test_the_prefix_cache_is_emptied_when_nothing_runs() -> None:
    async def test() -> None:
        async with engine(admin=True) as (served, stub):
            flush = common_pb2.FlushCacheRequest
            await read(stub, ask("abcdefgh"))
            _, (whole,) = await read(stub, ask("abcdefgh"))
            assert whole.cached_tokens
            served.programs.gate.clear()
            waiting = asyncio.create_task(read(stub, ask()))
            await until(served.front.streams)
            busy = await stub.FlushCache(flush())
            assert not busy.success and "1 requests" in busy.message
            flushing = asyncio.ensure_future(stub.FlushCache(flush(timeout_s=10)))
            served.programs.gate.set()
            await waiting
            assert (await flushing).success
            _, (whole,) = await read(stub, ask("abcdefgh"))
            assert not whole.cached_tokens
            async with refused("INVALID_ARGUMENT", "timeout_s"):
                await stub.FlushCache(flush(timeout_s=float("nan")))

    run(test())


def test_traces_go_where_the_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: told.append(folder))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: told.append("stop"))

    async def test() -> None:
        async with reaching(lambda front: VllmEngine(front, Profiler(tmp_path)), admin=True) as reached:
            stub = vllm_engine_pb2_grpc.VllmEngineStub(reached.channel)
            start = common_pb2.StartProfileRequest
            values = {"output_dir": "/", "start_step": 1, "num_steps": 1, "activities": ["CPU"], "with_stack": True,
                      "record_shapes": True, "profile_by_stage": True}  # fmt: skip
            assert values.keys() == set(start.DESCRIPTOR.fields_by_name)
            for field, value in values.items():
                async with refused("INVALID_ARGUMENT", f"{field} is set"):
                    await stub.StartProfile(start(**{field: value}))
            assert (await stub.StartProfile(start())).success and Path(told[0]).parent == tmp_path
            assert (await stub.StopProfile(common_pb2.StopProfileRequest())).success and told[1:] == ["stop"]

    run(test())


def test_the_server_is_managed_by_admins_alone() -> None:
    async def test() -> None:
        async with engine() as (_, stub):
            for call in (
                stub.FlushCache(common_pb2.FlushCacheRequest()),
                stub.StartProfile(common_pb2.StartProfileRequest()),
                stub.StopProfile(common_pb2.StopProfileRequest()),
            ):
                async with refused("PERMISSION_DENIED", "Admin"):
                    await call

    run(test())
