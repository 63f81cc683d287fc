"""Log-probabilities as JSON has them."""

import json
import math

from distaff.serving.logprobs import TokenLogprob

ENTRY = TokenLogprob(7, -math.inf, 9, ((3, -0.5), (5, -math.inf)))


def test_what_cannot_come_up_is_no_infinity_in_json() -> None:
    for told in (ENTRY.to_dict(), ENTRY.by_id(str)):
        json.dumps(told, allow_nan=False)
    assert ENTRY.by_id(lambda token: f"<{token}>") == {
        "3": {"logprob": -0.5, "rank": 1, "decoded_token": "<3>"},
        "5": {"logprob": -9999.0, "rank": 2, "decoded_token": "<5>"},
        "7": {"logprob": -9999.0, "rank": 9, "decoded_token": "<7>"},
    }


def test_a_token_among_the_likeliest_is_told_once() -> None:
    assert list(TokenLogprob(3, -0.5, 1, ((3, -0.5), (5, -1.0))).by_id(str)) == ["3", "5"]
