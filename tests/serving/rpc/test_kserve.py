"""inference.GRPCInferenceService over the fake model: what clients of Triton get, and that nothing stays held."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distaff.serving.rpc.kserve import UNIMPLEMENTED, InferenceService
from distaff.serving.rpc.kserve_tensors import INPUTS, OUTPUTS
from distaff.serving.rpc.protos.kserve import inference_pb2 as pb
from distaff.serving.rpc.protos.kserve import inference_pb2_grpc

from ...fakes import prompt_logprob
from ..served import MAX_LEN, Served
from .compat import reaching, refused, run, until
from .test_kserve_request import request

PLAIN = {"text_input": "abc", "sampling_parameters": '{"max_tokens": 8, "seed": 0, "ignore_eos": true}'}
STREAM = {**PLAIN, "stream": True}


@asynccontextmanager
async def triton(**options: Any) -> AsyncIterator[tuple[Served, Any]]:
    async with reaching(InferenceService, **options) as reached:
        yield reached.served, inference_pb2_grpc.GRPCInferenceServiceStub(reached.channel)


def values(response: pb.ModelInferResponse) -> dict[str, Any]:
    """Outputs by name; texts as str, one value alone."""
    found = {}
    for output in response.outputs:
        ((_, contents),) = output.contents.ListFields() or ((None, []),)
        listed = [value.decode() if isinstance(value, bytes) else value for value in contents]
        assert len(listed) == (output.shape[0] * output.shape[1] if len(output.shape) == 2 else output.shape[0])
        found[output.name] = listed[0] if output.shape == [1] else listed
    return found


def is_final(response: pb.ModelInferResponse) -> bool:
    return response.parameters["triton_final_response"].bool_param


async def stream(stub: Any, *requests: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    async def sent() -> AsyncIterator[pb.ModelInferRequest]:
        for one in requests:
            yield one

    return [message async for message in stub.ModelStreamInfer(sent())]


def test_tokens_are_the_engines() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            expected = served.answer("abc")
            text = served.text(expected)
            whole = await stub.ModelInfer(request(PLAIN))
            assert values(whole) == {"text_output": "abc" + text} and is_final(whole)
            assert (whole.model_name, whole.model_version, whole.id) == ("m", "1", "i")
            without = await stub.ModelInfer(request({**PLAIN, "exclude_input_in_output": True}))
            assert values(without) == {"text_output": text}

            ids = {"input_ids": served.tokenizer.encode("abc"), "request_output_len": 8, "seed": 0, "end_id": -1}
            tokens = await stub.ModelInfer(request({**ids, "exclude_input_in_output": True}))
            assert values(tokens) == {"output_ids": expected, "sequence_length": 8}
            echoed = values(await stub.ModelInfer(request(ids)))
            assert echoed == {"output_ids": [*ids["input_ids"], *expected], "sequence_length": 11}

            messages = [message.infer_response for message in await stream(stub, request(STREAM))]
            assert [values(message)["text_output"] for message in messages] == [*text, ""]
            assert [is_final(message) for message in messages] == [False] * 8 + [True]

    run(test())


def test_values_come_back_in_the_form_they_came() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            raw = request(PLAIN)
            for tensor in raw.inputs:
                (text,) = tensor.contents.bytes_contents
                raw.raw_input_contents.append(struct.pack("<I", len(text)) + text)
                tensor.ClearField("contents")
            answer = await stub.ModelInfer(raw)
            text = f"abc{served.text(served.answer('abc'))}".encode()
            assert list(answer.raw_output_contents) == [struct.pack("<I", len(text)) + text]
            assert not answer.outputs[0].HasField("contents")

    run(test())


def test_every_output() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            sampling = '{"max_tokens": 4, "seed": 0, "ignore_eos": true, "logprobs": 1, "n": 2}'
            asked = {"text_input": "abc", "sampling_parameters": sampling, "exclude_input_in_output": True}
            found = values(await stub.ModelInfer(request(asked, outputs=tuple(OUTPUTS))))
            answers = [served.answer("abc", tokens=4, seed=seed) for seed in (0, 1)]
            logprobs = [[prompt_logprob(token) for token in answer] for answer in answers]
            assert found["text_output"] == [served.text(answer) for answer in answers]
            assert found["finish_reason"] == ["length", "length"]
            assert found["cumulative_logprob"] == found["cum_log_probs"] == [sum(row) for row in logprobs]
            assert found["output_log_probs"] == [value for row in logprobs for value in row]
            assert found["output_ids"] == [token for answer in answers for token in answer]
            assert found["sequence_length"] == found["num_output_tokens"] == [4, 4]
            assert found["num_input_tokens"] == 3
            for answer, row, text in zip(answers, logprobs, found["logprobs"], strict=True):
                entries = json.loads(text)
                assert len(entries) == 4
                for token, logprob, entry in zip(answer, row, entries, strict=True):
                    spelled = served.tokenizer.decode([token], skip_special=False)
                    assert entry[str(token)] == {"logprob": logprob, "rank": 1, "decoded_token": spelled}

    run(test())


def test_answers_of_different_lengths_are_padded() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            answers = [served.answer("abc", seed=seed) for seed in (0, 1)]
            end = answers[1][2]
            assert end not in answers[0]
            asked = {**PLAIN, "num_return_sequences": 2, "end_id": end, "pad_id": 7, "exclude_input_in_output": True}
            asked["sampling_parameters"] = '{"max_tokens": 8, "seed": 0}'
            response = await stub.ModelInfer(request(asked, outputs=("output_ids", "sequence_length")))
            assert list(response.outputs[0].shape) == [2, 8]
            assert values(response)["output_ids"] == [*answers[0], *answers[1][:3], 7, 7, 7, 7, 7]
            assert values(response)["sequence_length"] == [8, 3]

    run(test())


def test_streams_tell_counts_and_totals_of_each_message() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            flags = {"return_finish_reason": True, "return_num_output_tokens": True, "return_cumulative_logprob": True}
            messages = await stream(stub, request({**STREAM, **flags}))
            found = [values(message.infer_response) for message in messages]
            assert [entry["num_output_tokens"] for entry in found] == [1] * 8 + [0]
            assert [entry["finish_reason"] for entry in found] == ["None"] * 8 + ["length"]
            total = sum(prompt_logprob(token) for token in served.answer("abc"))
            assert found[-1]["cumulative_logprob"] == found[-2]["cumulative_logprob"] == total

    run(test())


def test_choices_of_a_step_come_in_one_message() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            asked = {**STREAM, "sampling_parameters": '{"max_tokens": 8, "seed": 0, "ignore_eos": true, "n": 4}'}
            messages = [message.infer_response for message in await stream(stub, request(asked))]
            texts = [values(message)["text_output"] for message in messages]
            assert ["".join(parts) for parts in zip(*texts, strict=True)] == [
                served.text(served.answer("abc", seed=seed)) for seed in range(4)
            ]
            assert len(messages) < 4 * 8 and all(len(text) <= 1 for parts in texts for text in parts)

    run(test())


def test_a_stream_carries_many_requests() -> None:
    """Their messages come beside each other; one that fails says so by its id and leaves the others alone."""

    async def test() -> None:
        async with triton() as (served, stub):
            served.programs.step_seconds = 0.002
            requests = []
            for name in ("a", "b", "c"):
                asked = {**STREAM, "text_input": name * 3}
                requests.append(request(asked, triton_enable_empty_final_response=True))
                requests[-1].id = name
            bad = request({**STREAM, "temperature": -1.0})
            bad.id = "bad"
            messages = await stream(stub, requests[0], bad, *requests[1:])
            (failed,) = [message for message in messages if message.error_message]
            assert "temperature" in failed.error_message and failed.infer_response.id == "bad"
            order = [message.infer_response.id for message in messages if not message.error_message]
            assert order != sorted(order)
            for name in ("a", "b", "c"):
                own = [message.infer_response for message in messages if message.infer_response.id == name]
                text = "".join(values(message)["text_output"] for message in own[:-1])
                assert text == served.text(served.answer(name * 3))
                assert is_final(own[-1]) and not own[-1].outputs
            one_message = await stream(stub, request(PLAIN))
            assert len(one_message) == 1 and is_final(one_message[0].infer_response)

    run(test())


def test_more_requests_than_places_wait_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distaff.serving.rpc.kserve_stream.MAX_UNDER_WAY", 3)
    monkeypatch.setattr("distaff.serving.rpc.kserve_stream.MAX_WAITING", 2)

    async def test() -> None:
        async with triton() as (served, stub):
            most = 0

            def look() -> None:
                nonlocal most
                most = max(most, served.engine.num_requests)

            served.engine.after_round(look)
            messages = await stream(stub, *[request(STREAM) for _ in range(20)])
            assert sum(is_final(message.infer_response) for message in messages) == 20 and most <= 3

    run(test())


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
@pytest.mark.parametrize("streams", [False, True])
def test_what_is_ended_early_holds_nothing(how: str, streams: bool) -> None:
    async def test() -> None:
        async with reaching(InferenceService) as reached:
            served, stub = reached.served, inference_pb2_grpc.GRPCInferenceServiceStub(reached.channel)
            served.programs.step_seconds = 0.05  # five seconds in all: it is cut long before its end
            long = {**PLAIN, "sampling_parameters": '{"max_tokens": 100, "ignore_eos": true}'}
            if streams:
                reading = asyncio.create_task(stream(stub, *[request({**long, "stream": True})] * 4))
            else:
                reading = asyncio.ensure_future(stub.ModelInfer(request(long)))
            await until(lambda: served.used_slots == (4 if streams else 1))
            if how == "cancel":
                reading.cancel()
            else:
                await reached.channel.close()
            await asyncio.gather(reading, return_exceptions=True)
            await served.check_empty()
            if how == "cancel":
                (stats,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
                assert stats.inference_stats.fail.count == (4 if streams else 1)

    run(test())


def test_answers_cut_from_outside_are_errors() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            served.programs.step_seconds = 0.01
            long = {**PLAIN, "sampling_parameters": '{"max_tokens": 100, "ignore_eos": true}'}
            async with refused("DEADLINE_EXCEEDED"):
                await stub.ModelInfer(request(long, timeout=50_000))
            *some, last = await stream(stub, request({**long, "stream": True}, timeout=100_000))
            assert some and "time given" in last.error_message
            under_way = asyncio.create_task(stream(stub, request({**long, "stream": True})))
            await until(lambda: served.used_slots)
            await served.front.drain(0)
            assert "went down" in (await under_way)[-1].error_message
            async with refused("UNAVAILABLE"):
                await stub.ModelInfer(request(PLAIN))
            ready = await stub.ServerReady(pb.ServerReadyRequest())
            live = await stub.ServerLive(pb.ServerLiveRequest())
            assert live.live and not ready.ready
            index = await stub.RepositoryIndex(pb.RepositoryIndexRequest())
            assert (index.models[0].state, index.models[0].reason) == ("UNAVAILABLE", "draining")
            assert not (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models

    run(test())


def test_errors_have_their_codes() -> None:
    async def test() -> None:
        async with triton(served_names=("m",)) as (_, stub):
            async with refused("INVALID_ARGUMENT", "nonsense"):
                await stub.ModelInfer(request({**PLAIN, "nonsense": 1}))
            async with refused("INVALID_ARGUMENT", "ModelStreamInfer"):
                await stub.ModelInfer(request(STREAM))
            async with refused("INVALID_ARGUMENT", str(MAX_LEN)):
                await stub.ModelInfer(request({**PLAIN, "text_input": "a" * 200}))
            other = request(PLAIN)
            other.model_name = "other"
            async with refused("NOT_FOUND", "other", "m"):
                await stub.ModelInfer(other)
            for method, asked in (
                (stub.ModelReady, pb.ModelReadyRequest(name="other")),
                (stub.ModelMetadata, pb.ModelMetadataRequest(name="other")),
                (stub.ModelConfig, pb.ModelConfigRequest(name="m", version="2")),
                (stub.ModelStatistics, pb.ModelStatisticsRequest(name="other")),
            ):
                async with refused("NOT_FOUND"):
                    await method(asked)
            for name, reason in UNIMPLEMENTED.items():
                async with refused("UNIMPLEMENTED", name, reason):
                    await getattr(stub, name)(getattr(pb, f"{name}Request")())
            methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
            assert all(method.name in InferenceService.__dict__ for method in methods)

    run(test())


def test_what_it_says_of_its_model() -> None:
    async def test() -> None:
        async with triton() as (_, stub):
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="any"))).ready
            assert (await stub.ServerMetadata(pb.ServerMetadataRequest())).name == "distaff"
            metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="any"))
            assert metadata.name == "any" and list(metadata.versions) == ["1"]
            assert {tensor.name: tensor.datatype for tensor in metadata.inputs} == {
                name: tensor.datatype for name, tensor in INPUTS.items()
            }
            config = (await stub.ModelConfig(pb.ModelConfigRequest())).config
            assert config.name == "fake" and config.model_transaction_policy.decoupled and config.max_batch_size == 0
            assert {tensor.name for tensor in config.input} == INPUTS.keys()
            assert {tensor.name for tensor in config.output} == OUTPUTS.keys()
            (entry,) = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
            assert (entry.name, entry.version, entry.state) == ("fake", "1", "READY")

    run(test())


def test_statistics_move() -> None:
    async def test() -> None:
        async with triton() as (served, stub):
            served.programs.step_seconds = 0.005

            async def statistics() -> Any:
                return (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="m"))).model_stats[0]

            before = await statistics()
            assert before.inference_count == before.last_inference == 0 and not before.batch_stats
            await stub.ModelInfer(request(PLAIN))
            await stream(stub, request(STREAM), request({**STREAM, "beam_width": 2}))
            after = await statistics()
            assert after.inference_count == after.execution_count == after.batch_stats[0].compute_infer.count == 2
            stats = after.inference_stats
            assert (stats.success.count, stats.fail.count, stats.queue.count) == (2, 1, 2)
            # Two answers of 8 tokens, each a step of 5 ms and more; the parts are the whole.
            assert stats.compute_infer.ns >= 2 * 8 * 5e6 and stats.compute_input.ns > 0
            parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
            assert parts == pytest.approx(stats.success.ns, rel=0.05)
            assert after.last_inference > 1.7e12

    run(test())
