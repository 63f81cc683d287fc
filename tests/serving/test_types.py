"""Requests refuse what they cannot mean; results become JSON and carry everything."""

import json
import math
from typing import Any

import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.serving import EmptyPromptError
from distaff.serving.types import (
    Choice,
    Completion,
    Embedding,
    FinishReason,
    Kind,
    PromptLogprobs,
    Request,
    SamplingParams,
    Score,
    Timings,
    TokenEvent,
    TokenLogprob,
    Usage,
)

TIMINGS = Timings(load=1.0, compile=2.0, prefill=0.5, decode=0.25, decoded_tokens=5, queue=0.125, ttft=0.75)
TIMES = {
    "load": 1.0,
    "compile": 2.0,
    "prefill": 0.5,
    "decode": 0.25,
    "queue": 0.125,
    "ttft": 0.75,
    "tokens_per_second": 20.0,
}


def real(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def prompt_logprobs(num_top: int = 2) -> PromptLogprobs:
    """Of a prompt of three tokens, entered in two parts and one of these twice."""
    logprobs = PromptLogprobs.empty((5, 6, 7), num_top)
    ids, top = whole(6, 9, 8)[None], real(-0.5, -1.5, -2.5)[None]
    for _ in range(2):
        logprobs.fill(2, real(-1.0), whole(4), ids + 1, top)
    logprobs.fill(1, real(-0.5), whole(1), ids, top)
    return logprobs


def test_a_request_is_for_text_unless_said_otherwise() -> None:
    request = Request((1, 2))
    assert (request.kind, request.params, request.priority, request.pooling) == (
        Kind.GENERATE,
        SamplingParams(),
        0,
        "mean",
    )


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(EmptyPromptError, match="at least one token"):
        Request(())


def test_an_unknown_pooling_is_refused() -> None:
    pooling: Any = "max"
    with pytest.raises(InvalidParameterError, match="pooling is 'max', expected mean or last"):
        Request((1,), pooling=pooling)


@pytest.mark.parametrize("kind", [Kind.SCORE, Kind.EMBED])
def test_what_a_request_without_draws_cannot_honour_is_refused_by_name(kind: Kind) -> None:
    Request((1,), SamplingParams(seed=1), kind=kind)
    with pytest.raises(UnsupportedError, match=f"temperature is set, but a {kind} request draws no token"):
        Request((1,), SamplingParams(temperature=0), kind=kind)
    if kind is Kind.EMBED:
        with pytest.raises(UnsupportedError, match="prompt_logprobs is set"):
            Request((1,), SamplingParams(prompt_logprobs=1), kind=kind)
    else:
        Request((1,), SamplingParams(prompt_logprobs=1), kind=kind)


def test_a_completion_is_json_that_carries_everything() -> None:
    logprob = TokenLogprob(6, -0.25, 2, ((5, -0.125), (6, -0.25)))
    choices = (
        Choice(0, "hi", (5, 6), FinishReason.LENGTH, (logprob, logprob)),
        Choice(1, "h", (5,), FinishReason.STOP, None, "END"),
    )
    answer = Completion(choices, (1, 2, 3), Usage(3, 3, 2), TIMINGS, 9, prompt_logprobs())
    entry = {
        "token_id": 6,
        "logprob": -0.25,
        "rank": 2,
        "top": [{"token_id": 5, "logprob": -0.125}, {"token_id": 6, "logprob": -0.25}],
    }
    first = {"text": "hi", "token_ids": [5, 6], "finish_reason": "length"}
    assert json.loads(json.dumps(answer.to_dict(), allow_nan=False)) == {
        **first,
        "prompt_token_ids": [1, 2, 3],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 2, "total_tokens": 6},
        "timings": TIMES,
        "seed": 9,
        "choices": [
            {"index": 0, **first, "stopped_by": None, "logprobs": [entry, entry]},
            {
                "index": 1,
                "text": "h",
                "token_ids": [5],
                "finish_reason": "stop",
                "stopped_by": "END",
                "logprobs": None,
            },
        ],
        "prompt_logprobs": prompt_logprobs().to_json(),
    }
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("hi", (5, 6), FinishReason.LENGTH)


def test_prompt_logprobs_are_those_of_each_token_but_the_first() -> None:
    logprobs = prompt_logprobs()
    first, second = TokenLogprob(6, -0.5, 1, ((6, -0.5), (9, -1.5))), TokenLogprob(7, -1.0, 4, ((7, -0.5), (10, -1.5)))
    assert list(logprobs) == logprobs[:] == [None, first, second] and len(logprobs) == 3
    assert logprobs[-1] == second and logprobs[-3] is None and logprobs[1:] == [first, second]
    with pytest.raises(IndexError):
        logprobs[3]
    assert prompt_logprobs(num_top=0)[1] == TokenLogprob(6, -0.5, 1)
    assert list(PromptLogprobs.empty((5,), 3)) == [None]


def test_ranks_beyond_the_vocabulary_are_left_out() -> None:
    ids, top = whole(3, 4, -1, -1), real(-0.5, -1.0, -math.inf, -math.inf)
    assert TokenLogprob.of(4, -1.0, 2, ids, top, 3).top == ((3, -0.5), (4, -1.0))


def test_an_impossible_token_has_a_number_in_json() -> None:
    impossible = TokenLogprob(1, -math.inf, 5, ((2, 0.0), (3, -math.inf)))
    assert impossible.to_dict()["logprob"] == impossible.to_dict()["top"][1]["logprob"] == -9999.0


def test_a_score_sums_up() -> None:
    score = Score(prompt_logprobs(), Usage(3, 0), TIMINGS)
    assert score.total == -1.5 and score.perplexity == pytest.approx(math.exp(0.75)) and score.token_ids == (5, 6, 7)
    told = json.loads(json.dumps(score.to_dict(), allow_nan=False))
    assert told["total"] == -1.5 and told["logprobs"][0] is None and told["token_ids"] == [5, 6, 7]
    assert Score(PromptLogprobs.empty((5,), 0), Usage(1, 0), TIMINGS).perplexity == 1.0


def test_an_embedding_is_a_list_of_numbers_in_json() -> None:
    embedding = Embedding(real(0.5, -1.0), (1, 2), Usage(2, 0), Timings())
    assert json.loads(json.dumps(embedding.to_dict()))["vector"] == [0.5, -1.0]


def test_an_event_needs_a_token_and_a_text_only() -> None:
    event = TokenEvent(3, "a")
    assert (event.finish_reason, event.choice, event.logprob) == (None, 0, None)
