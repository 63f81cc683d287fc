"""Probes, guards and limits of the application, without a socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from distaff.serving.front import AuthenticationError, State
from distaff.serving.http.guards import Caller
from distaff.serving.rpc.tokens import TokenFile

from .asked import asking, run


@pytest.mark.parametrize(
    ("state", "alive", "ready"),
    [
        (State.STARTING, 200, 503),
        (State.READY, 200, 200),
        (State.DRAINING, 200, 503),
        (State.FAILED, 503, 503),
        (State.CLOSED, 503, 503),
    ],
)
def test_probes_tell_restart_from_wait(state: State, alive: int, ready: int) -> None:
    async def check() -> None:
        async with asking() as (served, client):
            kept, served.front.state = served.front.state, state
            try:
                for path, code in (("/healthz", alive), ("/readyz", ready), ("/health", ready)):
                    response = await client.get(path)
                    assert (response.status_code, response.json()) == (code, {"state": state.value}), path
            finally:
                served.front.state = kept

    run(check())


def test_tokens_guard_what_costs_and_not_the_probes(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text("- token: 0123456789abcdef0123\n  tenant: team-a\n")

    async def tenant(request: Request) -> JSONResponse:
        return JSONResponse(request.scope["distaff.tenant"])

    async def check() -> None:
        own = {"authenticate": TokenFile(file).authenticate, "routes": [Route("/v1/tenant", tenant)]}
        async with asking(own) as (served, client):
            seen: list[str] = []
            served.front.on_ended(lambda call, stream: seen.append(call.tenant))
            good = {"authorization": "Bearer 0123456789abcdef0123"}
            for headers, code in (
                ({}, 401),
                ({"authorization": "Bearer wrong"}, 401),
                ({"authorization": "Basic 0123456789abcdef0123"}, 401),
                (good, 200),
            ):
                response = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers=headers)
                assert response.status_code == code
                if code == 401:
                    assert response.json()["error"]["type"] == "authentication_error"
                    assert response.headers["www-authenticate"] == "Bearer" and "0123" not in response.text
            assert seen == ["team-a"] and served.front.counters.refused == {"unauthenticated": 3}
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.get("/v1/tenant", headers=good)).json() == "team-a"
            for path in ("/healthz", "/readyz", "/metrics", "/", "/status.json"):
                assert (await client.get(path)).status_code == 200, path

    run(check())


def test_a_guard_that_is_no_token_file() -> None:
    class Me:
        tenant = "me"

    def authenticate(header: str | None) -> Caller:
        if header != "Bearer x":
            raise AuthenticationError("no")
        return Me()

    async def check() -> None:
        async with asking({"authenticate": authenticate}) as (_, client):
            assert (await client.get("/v1/models", headers={"authorization": "Bearer x"})).status_code == 200

    run(check())


def test_what_http_refuses_has_an_error_object() -> None:
    async def check() -> None:
        async with asking({"max_body": 1000}) as (served, client):
            json = {"content-type": "application/json"}

            async def endless() -> AsyncIterator[bytes]:
                for _ in range(100):
                    yield b" " * 100

            cases: tuple[tuple[str, str, dict[str, Any], int, str], ...] = (
                ("GET", "/nothing", {}, 404, "not_found"),
                ("GET", "/v1/completions", {}, 405, "method_not_allowed"),
                ("POST", "/v1/completions", {"content": b"x" * 1001, "headers": json}, 413, "body_too_large"),
                ("POST", "/v1/completions", {"content": endless(), "headers": json}, 413, "body_too_large"),
                ("POST", "/v1/completions", {"content": b"{", "headers": json}, 400, "invalid"),
                ("POST", "/v1/completions", {"content": b"[]", "headers": json}, 400, "invalid"),
                ("POST", "/v1/completions", {"content": b"\xff\xfe", "headers": json}, 400, "invalid"),
                ("POST", "/v1/completions", {"content": b'{"prompt": "\\ud800"}', "headers": json}, 400, "invalid"),
                ("POST", "/v1/completions", {"content": b"[" * 900, "headers": json}, 400, "invalid"),
                ("POST", "/v1/completions", {"json": {"prompt": ""}}, 400, "invalid"),
                ("POST", "/v1/completions", {"json": {"prompt": "a" * 128}}, 400, "context_length_exceeded"),
                ("POST", "/v1/completions", {"json": {"prompt": [5000]}}, 400, "invalid"),
                (
                    "POST",
                    "/v1/completions",
                    {"content": b"a=b", "headers": {"content-type": "text/x"}},
                    415,
                    "content_type",
                ),
            )
            for method, path, options, code, kind in cases:
                response = await client.request(method, path, **options)
                error = response.json()["error"]
                assert (response.status_code, error["code"]) == (code, kind), response.text
                assert error["type"] in ("invalid_request_error", "not_found_error") and error["message"]
            await served.check_empty()
            refused = served.front.counters.refused
            assert refused == {"invalid": 7, "too_long": 1}, "paths and bodies that HTTP refuses are not counted"

    run(check())


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def check() -> None:
        async with asking({"body_seconds": 0.05}) as (_, client):

            async def slow() -> AsyncIterator[bytes]:
                yield b"{"
                await asyncio.sleep(0.5)

            headers = {"content-type": "application/json"}
            response = await client.post("/v1/completions", content=slow(), headers=headers)
            assert response.status_code == 408

    run(check())


def test_the_status_page_asks_nobody_else() -> None:
    async def check() -> None:
        async with asking() as (served, client):
            page = await client.get("/")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            for outside in ("http://www.w3.org/2000/svg",):
                assert page.text.replace(outside, "").count("http") == 0
            await client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 8})
            await served.settle()
            seen = (await client.get("/status.json")).json()
            assert (seen["state"], seen["requests"], seen["output_tokens"], seen["pages"]) == ("ready", 1, 8, 256)
            assert seen["itl"]["below"][-1] == 7 and seen["ttft"]["below"][-1] == 1
            assert len(seen["itl"]["below"]) == len(seen["itl"]["bounds"]) + 1
            for name in ("queue", "batch", "pages", "ttft", "itl"):
                assert f'["{name}"' in page.text

    run(check())
