"""OpenAI's endpoints over the fake model: the engine's tokens in OpenAI's shapes, and nothing held afterwards."""

import asyncio
from typing import Any
from urllib.parse import unquote

import pytest

from distaff.serving.http.completions import Completions

from ...fakes import prompt_logprob
from ..served import EOS
from .asked import asking, events, listening, run, until

CHAT = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
CHAT_PROMPT = "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"


def joined(chunks: list[dict[str, Any]], index: int) -> str:
    """The text of one choice of a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def ids_of(chunks: list[dict[str, Any]], index: int) -> list[int]:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return [token for choice in choices for token in choice.get("token_ids", ())]


@pytest.mark.parametrize("stream", [False, True])
def test_completions_of_several_prompts_are_the_engines_tokens(stream: bool) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            prompts: list[Any] = ["hello", "abc"]
            body = {"prompt": prompts, "max_tokens": 8, "seed": 0, "n": 2, "stream": stream, "return_token_ids": True}
            if stream:
                body["stream_options"] = {"include_usage": True}
            response = await client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            # The fake model draws choice i of seed 0 as it draws seed i.
            want = [served.answer(prompt, seed=choice) for prompt in prompts for choice in range(2)]
            if stream:
                chunks = events(response.text)
                assert response.headers["content-type"].startswith("text/event-stream")
                assert [ids_of(chunks, index) for index in range(4)] == want
                assert [joined(chunks, index) for index in range(4)] == [served.text(ids) for ids in want]
                ends = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
                assert sorted(choice["index"] for choice in ends) == [0, 1, 2, 3]
                assert {choice["finish_reason"] for choice in ends} == {"length"}
                assert all(chunk["usage"] is None for chunk in chunks[:-1]) and chunks[-1]["choices"] == []
                usage = chunks[-1]["usage"]
                assert len({chunk["id"] for chunk in chunks}) == 1
                assert {chunk["object"] for chunk in chunks} == {"text_completion"}
            else:
                value = response.json()
                assert value["object"] == "text_completion" and value["model"] == "fake"
                assert [choice["token_ids"] for choice in value["choices"]] == want
                assert [choice["text"] for choice in value["choices"]] == [served.text(ids) for ids in want]
                assert [choice["index"] for choice in value["choices"]] == [0, 1, 2, 3]
                assert {choice["finish_reason"] for choice in value["choices"]} == {"length"}
                usage = value["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (8, 32, 40)
            await served.check_empty()

    run(check())


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_the_templates_prompt(stream: bool) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            body = {"messages": CHAT, "max_completion_tokens": 6, "seed": 0, "stream": stream, "return_token_ids": True}
            response = await client.post("/v1/chat/completions", json=body)
            want = served.answer(CHAT_PROMPT, 6)
            if stream:
                chunks = events(response.text)
                assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
                assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
                assert all("usage" not in chunk for chunk in chunks), "nobody asked for it"
                assert joined(chunks, 0) == served.text(want) and ids_of(chunks, 0) == want
                assert chunks[-1]["choices"][0]["finish_reason"] == "length"
            else:
                value = response.json()
                message = value["choices"][0]["message"]
                assert message == {"role": "assistant", "content": served.text(want), "refusal": None}
                assert value["object"] == "chat.completion" and value["choices"][0]["token_ids"] == want
                assert value["usage"]["prompt_tokens"] == len(served.tokenizer.encode(CHAT_PROMPT))

    run(check())


def test_a_chat_without_a_limit_goes_on_to_the_end_of_the_context() -> None:
    async def check() -> None:
        async with asking() as (served, client):
            response = await client.post("/v1/chat/completions", json={"messages": CHAT})
            value = response.json()
            assert value["usage"]["total_tokens"] == served.front.card.context
            assert value["choices"][0]["finish_reason"] == "length"

    run(check())


def test_ends_say_why() -> None:
    async def check() -> None:
        async with asking(eos=True) as (served, client):
            prompt = next(text for text in map(str, range(1000)) if EOS in served.answer(text, 6)[2:])
            ids = served.answer(prompt, 6)
            first = served.text(ids[:1])
            for more, reason, stopped_by in (
                ({}, "stop", None),
                ({"stop": [first]}, "stop", first),
                ({"stop_token_ids": [ids[0]]}, "stop", ids[0]),
                ({"ignore_eos": True}, "length", None),
            ):
                body = {"prompt": prompt, "max_tokens": 6, "seed": 0, **more}
                choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
                assert (choice["finish_reason"], choice["stop_reason"]) == (reason, stopped_by), more

    run(check())


def test_log_probabilities_in_both_forms() -> None:
    async def check() -> None:
        async with asking() as (served, client):
            want = served.answer("hello", 6)
            named = [served.tokenizer.token_bytes(token).decode() for token in want]
            body = {"prompt": "hello", "max_tokens": 6, "seed": 0, "logprobs": 1}
            older = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
            assert older["tokens"] == named
            assert older["token_logprobs"] == [prompt_logprob(token) for token in want]
            # The fake model finds token 0, a space, the most likely one everywhere.
            assert all(top[" "] == 0.0 and name in top for top, name in zip(older["top_logprobs"], named, strict=True))
            lengths = [len(served.text([token])) for token in want]
            assert older["text_offset"] == [sum(lengths[:i]) for i in range(6)]

            body = {"messages": CHAT, "max_tokens": 4, "seed": 0, "logprobs": True, "top_logprobs": 2}
            newer = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["logprobs"]["content"]
            want = served.answer(CHAT_PROMPT, 4)
            assert [entry["logprob"] for entry in newer] == [prompt_logprob(token) for token in want]
            assert [bytes(entry["bytes"]) for entry in newer] == [served.tokenizer.token_bytes(t) for t in want]
            assert all(len(entry["top_logprobs"]) == 2 for entry in newer)
            chunks = events((await client.post("/v1/chat/completions", json={**body, "stream": True})).text)
            lists = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
            assert [entry for part in lists for entry in part["content"]] == newer

    run(check())


def test_an_echoed_prompt_comes_with_its_log_probabilities() -> None:
    async def check() -> None:
        async with asking() as (served, client):
            prompt = served.tokenizer.encode("hello")
            want = served.answer("hello", 2)
            body = {"prompt": "hello", "max_tokens": 2, "seed": 0, "logprobs": 0, "echo": True}
            choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
            assert choice["text"] == "hello" + served.text(want)
            expected = [None, *(prompt_logprob(token) for token in [*prompt[1:], *want])]
            assert choice["logprobs"]["token_logprobs"] == expected
            assert choice["logprobs"]["text_offset"] == list(range(7))

            # As evaluation harnesses ask: nothing is drawn.
            body = {"prompt": [prompt, prompt[:3]], "max_tokens": 0, "logprobs": 1, "echo": True, "temperature": 0}
            value = (await client.post("/v1/completions", json=body)).json()
            assert [choice["text"] for choice in value["choices"]] == ["hello", "hel"]
            assert value["choices"][0]["logprobs"]["token_logprobs"] == expected[:5]
            assert value["usage"]["completion_tokens"] == 0 and value["usage"]["prompt_tokens"] == 8
            body = {"prompt": prompt, "max_tokens": 0, "echo": True, "prompt_logprobs": 1}
            (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
            entries = zip(prompt, choice["prompt_logprobs"], strict=True)
            assert [entry and entry[str(token)]["logprob"] for token, entry in entries] == expected[:5]
            assert choice["logprobs"] is None

    run(check())


@pytest.mark.parametrize("chat", [False, True])
def test_the_prompts_log_probabilities_come_where_asked_for(chat: bool) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            body: dict[str, Any] = {"max_tokens": 2, "n": 2, "prompt_logprobs": 1}
            body |= {"messages": CHAT} if chat else {"prompt": "hello"}
            value = (await client.post(f"/v1/{'chat/' if chat else ''}completions", json=body)).json()
            prompt = served.tokenizer.encode(CHAT_PROMPT if chat else "hello")
            for choice in value["choices"]:
                assert choice["logprobs"] is None
                first, *rest = choice["prompt_logprobs"]
                assert first is None and len(rest) == len(prompt) - 1
                for token, entry in zip(prompt[1:], rest, strict=True):
                    assert entry[str(token)]["logprob"] == prompt_logprob(token)
                    assert entry["0"]["decoded_token"] == " ", "the likeliest one of the fake model"

    run(check())


def test_seeds_are_echoed_and_repeat_the_answer() -> None:
    async def check() -> None:
        async with asking() as (_, client):
            first = await client.post("/v1/completions", json={"prompt": "hello"})
            seed = int(first.headers["x-distaff-seed"])
            again = await client.post("/v1/completions", json={"prompt": "hello", "seed": seed})
            assert again.json()["choices"][0]["text"] == first.json()["choices"][0]["text"]
            assert again.json()["usage"]["completion_tokens"] == 16, "OpenAI's default"
            # A negative seed is the same 64 bits.
            signed = await client.post("/v1/completions", json={"prompt": "hello", "seed": -1})
            assert signed.headers["x-distaff-seed"] == str(2**64 - 1)

    run(check())


def test_a_prompt_seen_before_is_told_in_the_usage() -> None:
    async def check() -> None:
        async with asking() as (_, client):
            for cached in (0, 12):
                response = await client.post("/v1/completions", json={"prompt": "a" * 15, "max_tokens": 1})
                assert response.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == cached

    run(check())


@pytest.mark.parametrize("told", ["body", "header"])
def test_ids_are_those_that_the_client_gave(told: str) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            body = {"prompt": "a", "max_tokens": 2} | ({"request_id": "mine"} if told == "body" else {})
            headers = {"x-request-id": "mine"} if told == "header" else {}
            served.programs.gate.clear()
            first = asyncio.ensure_future(client.post("/v1/completions", json=body, headers=headers))
            await until(lambda: bool(served.front.streams()))
            second = asyncio.ensure_future(client.post("/v1/completions", json=body, headers=headers))
            await asyncio.sleep(0.05)
            served.programs.gate.set()
            assert (await first).headers["x-request-id"] == "mine"
            # A proxy's second try is served; a client that names two requests alike is told.
            assert (await second).status_code == (409 if told == "body" else 200)

    run(check())


@pytest.mark.parametrize("name", ["日本", " a b ", "a,b%", "a-b_c.d~e:f/g"])
def test_any_name_of_a_request_fits_the_header(name: str) -> None:
    async def check() -> None:
        async with listening() as (_, client, _server):
            response = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "request_id": name})
            assert response.status_code == 200 and unquote(response.headers["x-request-id"]) == name
            assert (response.headers["x-request-id"] == name) is ("-" in name)

    run(check())


@pytest.mark.parametrize("stream", [False, True])
def test_an_id_of_the_header_names_the_first_of_several_prompts(stream: bool) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            body = {"prompt": ["a", "b", "c"], "max_tokens": 2, "seed": 5, "stream": stream}
            response = await client.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
            first, *others = response.headers["x-request-id"].split(",")
            assert response.status_code == 200 and first == "mine" and len(set(others)) == 2
            assert response.headers.get("x-distaff-seed") == (None if stream else "5,5,5")
            assert served.front.counters.refused == {}, "a name that is taken is replaced, not refused"

    run(check())


def test_a_name_is_looked_at_only_where_names_are_given() -> None:
    async def check() -> None:
        async with asking() as (_, client):
            response = await client.post("/v1/completions", json={"prompt": "a", "model": "anything"})
            assert response.json()["model"] == "anything"
        async with asking(served_names=("small", "tiny")) as (_, client):
            assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == ["small", "tiny"]
            assert (await client.get("/v1/models/tiny")).json()["max_model_len"] == 128
            assert (await client.get("/v1/models/big")).status_code == 404
            response = await client.post("/v1/completions", json={"prompt": "a", "model": "big"})
            assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
            assert response.json()["error"]["param"] == "model"

    run(check())


def test_without_a_tokenizer_tokens_are_named_by_their_ids() -> None:
    async def check() -> None:
        async with asking(with_text=False) as (served, client):
            body = {"prompt": [1, 2, 3], "max_tokens": 3, "seed": 0, "logprobs": 0, "return_token_ids": True}
            choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
            want = served.answer([1, 2, 3], 3)
            assert choice["token_ids"] == want
            assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in want]
            response = await client.post("/v1/chat/completions", json={"messages": CHAT})
            assert response.status_code == 400

    run(check())


def test_part_of_a_character_is_named_by_its_bytes() -> None:
    async def check() -> None:
        async with asking() as (served, _):
            spelling = Completions(served.front)._spelling
            for token in range(served.tokenizer.vocab_size):
                data = served.tokenizer.token_bytes(token)
                if data and data[0] < 0x80:
                    assert spelling.name(token) == data.decode()
                else:
                    assert spelling.name(token) == f"bytes:\\x{data[0]:02x}"
            assert served.tokenizer.token_bytes(10**6) == b""

    run(check())
