"""What a line asks for: bodies are read as the HTTP port reads them, less what makes no sense in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from ...backends.errors import DistaffError, InvalidParameterError
from ..front.call import Call
from ..http.bodies import ChatBody, CompletionBody
from ..http.errors import invalid_body
from ..http.fields import Body
from ..types import Kind, SamplingParams
from .errors import LineError
from .line import Line

_MAX_INPUTS = 2048
# Fields about one caller who waits for one answer.
_LIVE = ("stream", "request_id", "queue_timeout", "timeout")


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = "mean"
    user: str | None = None

    def calls(self) -> list[Call]:
        """One for each input.

        Raises:
            InvalidParameterError: there is none, or there are too many.
        """
        given = self.input
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not 1 <= len(given) <= _MAX_INPUTS:
            raise InvalidParameterError("input", f"{len(given)} inputs", f"1 to {_MAX_INPUTS}")
        inputs = [each if isinstance(each, str) else tuple(each) for each in given]  # pyright: ignore[reportArgumentType]
        return [Call(each, SamplingParams(seed=0), Kind.EMBED, self.pooling) for each in inputs]


_KINDS: dict[str, type[ChatBody | CompletionBody | EmbeddingBody]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
}


@dataclass(frozen=True)
class Asked:
    """What a line asks for.

    Attributes:
        body: its fields.
        calls: one for each prompt or input.
    """

    body: ChatBody | CompletionBody | EmbeddingBody
    calls: tuple[Call, ...]


def read_body(line: Line, *, job_seed: int = 0, served_names: Sequence[str] = ()) -> Asked:
    """What a line that is a request asks for.

    Args:
        job_seed: what lines without a seed draw theirs from.
        served_names: names that `model` may have; none lets it be any.

    Raises:
        LineError: names the field that cannot be honoured.
    """
    given = line.body
    if served_names and given.get("model") not in served_names:
        raise LineError(
            "model_not_found",
            f"model is {given.get('model')!r}, expected {' or '.join(served_names)}",
            param="model",
            status=404,
        )
    for name in _LIVE:
        if given.get(name):
            raise LineError("unsupported_parameter", f"{name} is set, which is nothing for a file of requests",
                            param=name)  # fmt: skip
    kind = _KINDS[line.url]
    if kind is not EmbeddingBody and given.get("seed") is None:
        given = {**given, "seed": line.seed(job_seed)}
    try:
        body = kind.model_validate(given)
        calls = tuple(body.calls())
    except ValidationError as error:
        raise _described(error) from error
    except InvalidParameterError as error:
        raise LineError("invalid_parameter", str(error), param=error.field) from error
    except DistaffError as error:
        raise LineError("invalid_request", str(error)) from error
    return Asked(body, calls)


def _described(error: ValidationError) -> LineError:
    """What is wrong, in one sentence."""
    told = invalid_body(error)
    found = error.errors(include_url=False, include_context=False, include_input=False)
    unsupported = any(each["type"] == "extra_forbidden" or "is not supported" in each["msg"] for each in found)
    return LineError("unsupported_parameter" if unsupported else "invalid_parameter", str(told), param=told.field)
