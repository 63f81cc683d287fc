"""Requests over HTTP, as the OpenAI API has them: what other servers speak as well."""

import json
import secrets
import ssl
from pathlib import Path
from typing import Any

import httpx2

from ...backends.errors import DistaffError, UsageError
from .generator import Clock
from .record import Record
from .trace import Ask, message_of

_DATA, _DONE = "data:", "[DONE]"


class HttpTransport:
    """Streams /v1/completions, or /v1/chat/completions. Use it as an async context manager.

    Each request that is under way has a connection of its own, as HTTP/1.1 needs.

    Args:
        url: the server's, such as http://127.0.0.1:8000.
        model: what requests name; None asks /v1/models and takes the first.
        ca: a file of certificates to trust instead of the system's.
        chat: prompts are messages of a user.
    """

    vocab_size: int | None = None
    """This API does not tell."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        token: str | None = None,
        ca: Path | None = None,
        chat: bool = False,
    ) -> None:
        self._model, self._chat = model, chat
        self._path = "/v1/chat/completions" if chat else "/v1/completions"
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        unlimited = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.AsyncClient(
            base_url=self._url, headers=headers, limits=unlimited, timeout=None, verify=_trusted(ca)
        )
        self.begin_run()

    async def __aenter__(self) -> "HttpTransport":
        if self._model is None:
            try:
                self._model = await self._first_model()
            except BaseException:
                await self.__aexit__()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def model(self) -> str:
        """What requests name."""
        return self._model or ""

    def begin_run(self) -> None:
        """Requests from now on do not find computed what earlier ones have asked, where the server knows salts."""
        self._salt = secrets.token_hex(8)

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        """One request; what comes goes into `record`."""
        body = {
            "model": self._model,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "ignore_eos": True,  # not OpenAI's, as the salt, but other servers have both as well
            "cache_salt": self._salt,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._chat:
            body["messages"] = [message_of(ask)]
        else:
            body["prompt"] = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
        try:
            async with self._http.stream("POST", self._path, json=body) as answer:
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

    async def _first_model(self) -> str:
        where = f"{self._url}/v1/models"
        try:
            answer = await self._http.get("/v1/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
        except httpx2.HTTPError as error:
            raise DistaffError(f"{where}: {error or type(error).__name__}; is it running?") from error
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{where}: names no model; give --model") from error


def _trusted(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise UsageError(f"{ca}: cannot be read ({error.strerror or error}); expected a PEM file") from error


def _enter(chunk: dict[str, Any], record: Record, now: float) -> None:
    """What one chunk says. A chunk without text still brought a token, unless it is the first of a chat, which names
    the role, or one that ends a choice."""
    if "error" in chunk:
        record.error = str(chunk["error"].get("type") or "error")
        return
    usage = chunk.get("usage")
    if usage:
        record.prompt_tokens = usage.get("prompt_tokens", 0)
        record.output_tokens = usage.get("completion_tokens", 0)
        record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content")
        if text or not (choice.get("finish_reason") or "role" in delta):
            record.arrivals.append((now, len(choice.get("token_ids") or ()) or 1))
