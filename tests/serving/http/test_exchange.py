"""One request and its response: large ones, ones that fail, and clients that leave."""

import asyncio
import json
import threading
from typing import Any

import httpx2
import pytest

from distaff.serving.front import FrontLimits
from distaff.serving.http.bodies import CompletionBody

from .asked import asking, events, listening, run, until


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(stream: bool) -> None:
    async def check() -> None:
        async with listening() as (served, client, _):
            served.programs.step_seconds = 0.01
            body = {"prompt": ["abc", "def"], "max_tokens": 120, "stream": stream}
            if stream:
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    async for _line in response.aiter_lines():
                        break
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    await client.post("/v1/completions", json=body, timeout=0.1)
            assert served.used_pages > 0, "it runs"
            await served.check_empty()
            assert served.front.counters.ended == {"cancelled": 2}
            assert served.front.metrics.outcomes == {"abort": 2}

    run(check())


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_answer_is_an_error_and_not_a_short_answer(stream: bool) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            served.programs.step_seconds = 0.02
            body = {"prompt": "abc", "max_tokens": 100, "timeout": 0.25, "stream": stream}
            response = await client.post("/v1/completions", json=body)
            if stream:
                error = events(response.text)[-1]["error"]
                assert error["usage"]["completion_tokens"] > 0
            else:
                assert response.status_code == 504
                error = response.json()["error"]
            assert error["code"] == "deadline" and error["type"] == "server_error"
            await served.check_empty()

    run(check())


def test_a_step_that_fails_is_told_without_the_servers_insides() -> None:
    async def check() -> None:
        async with asking() as (served, client):
            served.programs.failure = RuntimeError("/secret/path")
            for stream in (False, True):
                response = await client.post("/v1/completions", json={"prompt": "abc", "stream": stream})
                assert response.status_code == 500 and "secret" not in response.text
                assert response.json()["error"]["type"] == "server_error"

    run(check())


def test_what_cannot_be_served_now_says_when() -> None:
    async def check() -> None:
        async with asking(limits=FrontLimits(max_streams=1)) as (served, client):
            served.programs.gate.clear()
            first = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}))
            await until(lambda: bool(served.front.streams()))
            response = await client.post("/v1/completions", json={"prompt": "a"})
            assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
            served.programs.gate.set()
            assert (await first).status_code == 200
            await served.settle()
            await served.front.drain(0)
            response = await client.post("/v1/completions", json={"prompt": "a"})
            assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1

    run(check())


def test_a_large_body_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []
    calls = CompletionBody.calls

    def noted(body: CompletionBody) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return calls(body)

    monkeypatch.setattr(CompletionBody, "calls", noted)

    async def check() -> None:
        async with asking() as (served, client):
            for pad in (0, 2**17):
                for tokens, code in ((3, 200), (-3, 400)):
                    body = json.dumps({"prompt": [1, 2], "max_tokens": tokens, "seed": 0, "return_token_ids": True})
                    json_type = {"content-type": "application/json"}
                    response = await client.post("/v1/completions", content=body + " " * pad, headers=json_type)
                    assert response.status_code == code
                    if code == 200:
                        assert response.json()["choices"][0]["token_ids"] == served.answer([1, 2], 3)
                    else:
                        assert response.json()["error"]["param"] == "max_tokens"
            assert served.front.counters.refused["invalid"] == 2

    run(check())
    assert threads == [True, True, False, False]
