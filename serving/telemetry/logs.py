"""Logs as lines of JSON on standard error, one for each call that ends, and never a prompt unless asked."""

import json
import logging
import sys
from datetime import UTC, datetime
from io import TextIOBase
from typing import Any

from ..front import Call, Chat, Front, Stream
from .operations import operation_of

FIELDS = "fields"
"""Name of the attribute of a log record that holds members for its line."""
_LOGGERS = ("distaff", "uvicorn", "grpc", "asyncio")
_log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """Formats a record as one object: time, level, logger, message, the record's own fields, and its error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logs(level: str = "info", stream: TextIOBase | None = None) -> logging.Handler:
    """Sends what the server and the libraries under it log to a stream, as JsonLines.

    Args:
        level: of the server's own; libraries tell warnings and worse.
        stream: standard error by default.

    Returns:
        What writes: `remove_logs` takes it away again.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(level.upper() if name == "distaff" else logging.WARNING)
    return handler


def remove_logs(handler: logging.Handler) -> None:
    """Undoes `configure_logs`."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


class RequestLog:
    """One line for each call of a front that was let in, when it has ended; refused ones are counted and not told.

    Args:
        front: whose calls.
        prompts: whether the line has the prompt.
    """

    def __init__(self, front: Front, *, prompts: bool = False) -> None:
        self._front = front
        self._prompts = prompts
        front.on_ended(self._ended)

    def _ended(self, call: Call, stream: Stream) -> None:
        if _log.isEnabledFor(logging.INFO):
            _log.info("request", extra={FIELDS: self._fields(call, stream)})

    def _fields(self, call: Call, stream: Stream) -> dict[str, Any]:
        usage, timings = stream.usage, stream.timings
        fields: dict[str, Any] = {
            "request_id": stream.id,
            "operation": operation_of(call),
            "outcome": stream.outcome,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_ms": round(timings.queue * 1e3, 3),
            "ttft_ms": round(timings.ttft * 1e3, 3),
            "total_ms": round(self._front.seconds_since(stream.opened) * 1e3, 3),
        }
        more = {"tenant": call.tenant, "user": call.user, "model": call.model, "trace_id": _trace_id(call.traceparent)}
        fields |= {name: value for name, value in more.items() if value}
        if stream.error is not None:
            fields["error_type"] = type(stream.error).__name__
        if self._prompts:
            prompt = call.prompt
            fields["prompt"] = [dict(message) for message in prompt.messages] if isinstance(prompt, Chat) else prompt
        return fields


def _trace_id(traceparent: str | None) -> str:
    """The second part of a W3C traceparent."""
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""
