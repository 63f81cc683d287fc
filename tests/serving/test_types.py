"""Sampling parameters: what is out of range is refused by name."""

from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.types import Completion, FinishReason, SamplingParams, Timings, Usage


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 2**31),
        ("temperature", -0.1),
        ("temperature", 1e-30),
        ("temperature", float("nan")),
        ("temperature", 101.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ("",)),
        ("stop", ("a", "")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameterError, match=rf"^{field} is .*, expected ") as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field and caught.value.exit_code == 2


def test_the_ends_of_each_range_are_accepted() -> None:
    SamplingParams(max_tokens=1, temperature=0, top_k=0, top_p=1, min_p=0, seed=0)
    SamplingParams(max_tokens=2**31 - 1, temperature=100, top_k=2**31 - 1, top_p=1e-9, min_p=1, seed=2**64 - 1)


def test_one_stop_text_may_be_given_bare() -> None:
    assert SamplingParams(stop=("END",)).stop == ("END",)


def test_a_completion_is_json_with_sums_and_rates() -> None:
    timings = Timings(load=1.0, compile=2.0, prefill=0.5, decode=0.25, decoded_tokens=5)
    answer = Completion("hi", (5, 6), (1, 2, 3), FinishReason.LENGTH, Usage(3, 2), timings, seed=9).to_dict()
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert answer["timings"] == {"load": 1.0, "compile": 2.0, "prefill": 0.5, "decode": 0.25, "tokens_per_second": 20.0}
    assert (answer["text"], answer["token_ids"], answer["finish_reason"], answer["seed"]) == ("hi", [5, 6], "length", 9)
