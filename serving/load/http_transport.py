"""Requests over HTTP, as the OpenAI API has them: what other servers speak as well."""

import json
import secrets
from typing import Any

import httpx2

from ...backends.errors import DistaffError, UsageError
from .generator import Clock
from .record import Record
from .trace import Ask

_DATA, _DONE = "data:", "[DONE]"


class HttpTransport:
    """Streams /v1/completions. Use it as an async context manager.

    Args:
        url: the server's, such as http://127.0.0.1:8000.
        model: what requests name; None asks /v1/models and takes the first.
        body: further fields of every request.
    """

    def __init__(
        self, url: str, *, model: str | None = None, token: str | None = None, body: dict[str, Any] | None = None
    ) -> None:
        self._model = model
        # ignore_eos and cache_salt are not OpenAI's, but other servers have them as well. The salt keeps the prompts of
        # one run from being found computed by the next.
        self._body = {"ignore_eos": True, "temperature": 0, "cache_salt": secrets.token_hex(8), **(body or {})}
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.AsyncClient(base_url=self._url, headers=headers, limits=unlimited, timeout=None)

    async def __aenter__(self) -> "HttpTransport":
        if self._model is None:
            try:
                answer = await self._http.get("/v1/models")
                answer.raise_for_status()
                self._model = str(answer.json()["data"][0]["id"])
            except httpx2.HTTPError as error:
                raise DistaffError(f"{self._url}/v1/models: {error or type(error).__name__}; is it running?") from error
            except (ValueError, LookupError, TypeError) as error:
                raise UsageError(f"{self._url}/v1/models: names no model; give --model") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def model(self) -> str:
        """What requests name."""
        return self._model or ""

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        """One request; what comes goes into `record`."""
        body = {
            "model": self._model,
            "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
            "max_tokens": ask.max_tokens,
            **self._body,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    record.error = f"HTTP {answer.status_code}"
                    return
                done = False
                async for line in answer.aiter_lines():
                    if line.startswith(_DATA):
                        now, data = clock(), line[len(_DATA) :].strip()
                        if data == _DONE:
                            done = True
                        else:
                            _enter(json.loads(data), record, now)
                if not done and record.error is None:
                    record.error = "the stream ended early"
        except (httpx2.HTTPError, ValueError) as error:
            record.error = type(error).__name__


def _enter(chunk: dict[str, Any], record: Record, now: float) -> None:
    """What one chunk says. A chunk without text still brought a token, unless it is the last one's."""
    if "error" in chunk:
        record.error = str(chunk["error"].get("type") or "error")
        return
    usage = chunk.get("usage")
    if usage:
        record.prompt_tokens = usage.get("prompt_tokens", 0)
        record.output_tokens = usage.get("completion_tokens", 0)
        record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in chunk.get("choices") or ():
        if choice.get("text") or choice.get("finish_reason") is None:
            record.arrivals.append((now, len(choice.get("token_ids") or ()) or 1))
