"""What requests of distaff.v1 are refused for: each field by its name, quickly, and nothing of the insides is told."""

import math
import time
from typing import Any

from distaff.serving.rpc.protos.distaff.v1 import generation_pb2, models_pb2, tokenization_pb2
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2 as pb

from .compat import run
from .native import INSIDES, native, refusal, request


def sampling(**fields: Any) -> generation_pb2.GenerateRequest:
    return request(sampling=fields)


BAD: dict[str, tuple[generation_pb2.GenerateRequest, str]] = {
    "no prompt": (generation_pb2.GenerateRequest(), "prompt"),
    "empty text": (request(""), "prompt"),
    "no tokens": (request(token_ids={"ids": []}), "prompt"),
    "too long a text": (request("x" * 200_000), "prompt"),
    "three million tokens": (request(token_ids={"ids": [5] * 3_000_000}), "prompt"),
    "a token beyond the vocabulary": (request(token_ids={"ids": [1, 100_000]}), "prompt"),
    "a negative token": (request(token_ids={"ids": [-1]}), "prompt"),
    "no messages": (request(chat={}), "prompt"),
    "a message of nobody": (request(chat={"messages": [{"content": "a"}]}), "chat.messages[0].role"),
    "tools that are no JSON": (request(chat={"messages": [{"role": "user"}], "tools_json": "[" * 10_000}),
                               "chat.tools_json"),
    "variables that are no object": (request(chat={"template_variables_json": "[1]"}), "chat.template_variables_json"),
    "a million choices": (sampling(n=10**6), "n"),
    "a hundred thousand stop texts": (sampling(stop=[str(number) for number in range(100_000)]), "stop"),
    "a stop text of a megabyte": (sampling(stop=["x" * 2**20]), "stop"),
    "an empty stop text": (sampling(stop=[""]), "stop"),
    "log-probabilities of everything": (sampling(logprobs=101), "logprobs"),
    "no token to draw": (sampling(allowed_token_ids=generation_pb2.TokenIds()), "allowed_token_ids"),
    "a bias without end": (sampling(logit_bias={1: math.inf}), "logit_bias"),
    "a priority beyond all": (request(priority=1000), "priority"),
    "a long id": (request(request_id="x" * 1000), "id"),
    "a negative chunk": (request(output={"chunk_tokens": -1}), "output.chunk_tokens"),
}  # fmt: skip
for _name in (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
):
    for _value in (math.nan, math.inf, -math.inf, -1e30, 1e30):
        BAD[f"{_name} {_value}"] = (sampling(**{_name: _value}), _name)
for _name in ("max_tokens", "min_tokens", "top_k", "n", "logprobs", "prompt_logprobs"):
    BAD[f"{_name} -5"] = (sampling(**{_name: -5}), _name)
for _name in ("queue_timeout_seconds", "total_timeout_seconds"):
    for _value in (math.nan, math.inf, -1.0):
        _limit: dict[str, Any] = {_name: _value}
        BAD[f"{_name} {_value}"] = (request(**_limit), _name)


def test_bad_values_are_refused_by_name_quickly_and_nothing_stays() -> None:
    async def check() -> None:
        async with native() as reached:
            for name, (bad, field) in BAD.items():
                started = time.perf_counter()
                try:
                    ended = await refusal(reached.inference.GenerateUnary(bad))
                except AssertionError as error:
                    raise AssertionError(name) from error
                took = time.perf_counter() - started
                assert (ended.code, ended.field) == ("INVALID_ARGUMENT", field), f"{name}: {ended}"
                assert not any(word in ended.message for word in INSIDES), f"{name}: {ended.message}"
                assert len(ended.message) < 1100, name
                assert took < 2.0, f"{name} took {took:.2f} s"
            nul = await reached.inference.GenerateUnary(request("a\x00b", 2))
            assert list(nul.choices[0].token_ids) == reached.served.answer("a\x00b", 2)

    run(check())


def test_the_same_is_refused_of_the_other_methods() -> None:
    async def check() -> None:
        async with native(served_names=("fake",)) as reached:
            refusals = [
                (reached.inference.Score(pb.ScoreRequest(text="")), "INVALID_ARGUMENT", "prompt"),
                (reached.inference.Score(pb.ScoreRequest(text="a", num_top=10**6)),
                 "INVALID_ARGUMENT", "prompt_logprobs"),
                (reached.inference.Embed(pb.EmbedRequest(text="a", pooling=7)), "INVALID_ARGUMENT", "pooling"),  # pyright: ignore[reportArgumentType]
                (reached.inference.Generate(request(model="other")), "NOT_FOUND", "model"),
                (reached.models.GetModel(models_pb2.GetModelRequest(name="other")), "NOT_FOUND", "model"),
                (reached.tokenization.Tokenize(tokenization_pb2.TokenizeRequest(model="other")), "NOT_FOUND", "model"),
                (reached.tokenization.Detokenize(tokenization_pb2.DetokenizeRequest(token_ids=[10**6])),
                 "INVALID_ARGUMENT", "token_ids"),
                (reached.tokenization.ApplyChatTemplate(tokenization_pb2.ApplyChatTemplateRequest()),
                 "INVALID_ARGUMENT", "prompt"),
            ]  # fmt: skip
            for call, code, field in refusals:
                ended = await refusal(call)
                assert (ended.code, ended.field) == (code, field), ended

    run(check())
