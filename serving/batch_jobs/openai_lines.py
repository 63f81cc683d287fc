"""Lines of an OpenAI batch file: {"custom_id", "method", "url", "body"} each."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import LineError
from .line import URLS, Line, digest_of

_FIELDS = {"custom_id", "method", "url", "body"}
_MAX_ID = 512


def parse(number: int, where: str, data: bytes, defaults: Mapping[str, Any]) -> Line:
    """The request in a line; one that holds none comes out with its `problem`.

    Args:
        defaults: fields that bodies have where they do not set them.
    """
    custom_id: str | None = None
    url = ""
    try:
        value = _object(data)
        given = value.get("custom_id")
        if given is not None:
            custom_id = _custom_id(given)
        url = _url(value)
        unknown = value.keys() - _FIELDS
        if unknown:
            raise LineError("unknown_field", f"the line has {sorted(unknown)[0]!r}, expected {', '.join(_FIELDS)}")
        body = value.get("body")
        if not isinstance(body, dict):
            raise LineError("invalid_body", f"body is {_short(body)}, expected an object", param="body")
        body = {**defaults, **body}
        return Line(number, where, custom_id, url, body, digest_of(body))
    except LineError as problem:
        return Line(number, where, custom_id, url, {}, hashlib.sha256(data).digest(), problem)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineError(
            "invalid_encoding", f"byte {error.start} is 0x{data[error.start]:02x}, expected UTF-8"
        ) from error
    except RecursionError as error:
        raise LineError("invalid_json", "not JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise LineError("invalid_json", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise LineError("invalid_json", f"the line is {_short(value)}, expected an object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
"""Made once: json.loads with an option makes one for each line."""


def _custom_id(given: object) -> str:
    if not isinstance(given, str) or not given or len(given) > _MAX_ID:
        raise LineError(
            "invalid_custom_id", f"custom_id is {_short(given)}, expected a text of 1 to {_MAX_ID} characters",
            param="custom_id",
        )  # fmt: skip
    return given


def _url(value: Mapping[str, Any]) -> str:
    if value.get("method") != "POST":
        raise LineError("invalid_method", f"method is {_short(value.get('method'))}, expected 'POST'", param="method")
    url = value.get("url")
    if url not in URLS:
        raise LineError("invalid_url", f"url is {_short(url)}, expected {' or '.join(URLS)}", param="url")
    return str(url)


def _short(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
