"""Rows of the output: what the engine gave, as OpenAI's batch files have it. Nothing in them differs between runs."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..front.events import reason_of
from ..generation import Result
from ..http.shapes import Answer, shape_of
from ..http.spelling import Spelling
from ..results import Choice, Completion, Embedding
from ..types import SamplingParams
from .asked import EmbeddingBody
from .errors import LineError
from .line import Line
from .prepare import Prepared

CREATED = 0
"""The time that rows tell: none, since it would differ between runs. The manifest has times."""


# ASCII, so that no text can hold what some reader takes for the end of a line.
_ROWS = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def good_row(line: Line, body: dict[str, Any]) -> bytes:
    """The row of an answer."""
    return _row(line, 200, body, None)


def bad_row(line: Line, problem: LineError) -> bytes:
    """The row of a line that could not be answered; status and error both say so, since readers look at either."""
    told = {"code": problem.code, "message": problem.message, "param": problem.param}
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    return _row(line, problem.status, {"error": {**told, "type": kind}}, {**told, "line": line.number})


def _row(line: Line, status: int, body: dict[str, Any], error: dict[str, Any] | None) -> bytes:
    response = {"status_code": status, "request_id": f"req_{line.id}", "body": body}
    row = {"id": f"batch_req_{line.id}", "custom_id": line.custom_id, "response": response, "error": error}
    return _ROWS.encode(row).encode()


class Answers:
    """Makes bodies of responses.

    Args:
        model: what rows call the model where their line does not name one.
        spelling: of its tokens.
    """

    def __init__(self, model: str, spelling: Spelling) -> None:
        self._model = model
        self._spelling = spelling

    def row(self, item: Prepared, results: Sequence[Result]) -> bytes:
        """The row of a line whose requests came to these results."""
        line, asked = item.line, item.asked
        model = asked.body.model or self._model
        prompt = sum(result.usage.prompt_tokens for result in results)
        if isinstance(asked.body, EmbeddingBody):
            usage = {"prompt_tokens": prompt, "total_tokens": prompt}
            data = [
                {"object": "embedding", "index": index, "embedding": _vector(result, asked.body.encoding_format)}
                for index, result in enumerate(results)
                if isinstance(result, Embedding)
            ]
            return good_row(line, {"object": "list", "data": data, "model": model, "usage": usage})
        body = asked.body
        shape = shape_of(body, model, self._spelling)
        choices: list[dict[str, Any]] = []
        for call, result in zip(asked.calls, results, strict=True):
            assert isinstance(result, Completion)
            prompt_logprobs = result.prompt_logprobs or ()
            echoed = len(result.prompt_token_ids) if call.params.echo else 0
            for choice in result.choices:
                choices.append(shape.choice(len(choices), _answer(choice, echoed, call.params), prompt_logprobs))
        drawn = sum(result.usage.completion_tokens for result in results)
        return good_row(line, {
            "id": f"{shape.prefix}-{line.id}", "object": shape.kind, "created": CREATED, "model": model,
            "choices": choices,
            "usage": {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn},
        })  # fmt: skip


def _answer(choice: Choice, echoed: int, params: SamplingParams) -> Answer:
    drawn = len(choice.token_ids) - echoed
    reason = reason_of(choice.finish_reason, choice.stopped_by, drawn, params, None)
    return Answer([choice.text], list(choice.token_ids), list(choice.logprobs or ()), reason, choice.stopped_by)


def _vector(result: Embedding, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(np.asarray(result.vector, "<f4").tobytes()).decode()
    return np.asarray(result.vector, np.float32).tolist()
