"""Sampling parameters as Triton's clients spell them."""

import math
from typing import Any

import pytest

from distaff.backends.errors import DistaffError, InvalidParameterError
from distaff.serving.capabilities import PARAMETERS
from distaff.serving.rpc.kserve_parameters import REFUSED, read_json, read_sampling
from distaff.serving.types import SamplingParams


@pytest.mark.parametrize("parameter", [p for p in PARAMETERS if p.name not in REFUSED], ids=lambda p: p.name)
def test_every_parameter_of_ours_is_taken(parameter: Any) -> None:
    assert read_sampling({parameter.name: parameter.example}) == SamplingParams(**{parameter.name: parameter.example})


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    with pytest.raises(DistaffError, match=f"^{name} is set, but .+: leave it out"):
        read_sampling({name: 1})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": "0.5", "max_tokens": "7"}, {"temperature": 0.5, "max_tokens": 7}),
        ({"ignore_eos": "True", "stop": "True"}, {"ignore_eos": True, "stop": ("True",)}),
        ({"stop": "1", "stop_token_ids": "[1, 2]"}, {"stop": ("1",), "stop_token_ids": (1, 2)}),
        ({"stop": ["a", "b"], "top_k": -1}, {"stop": ("a", "b")}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"logit_bias": {"5": 2.0}}, {"logit_bias": {5: 2.0}}),
        ({"max_tokens": None, "seed": None, "top_p": None}, {"max_tokens": None}),
        ({"n": 2, "best_of": 2, "skip_special_tokens": True, "detokenize": "true"}, {"n": 2}),
        ({"include_stop_str_in_output": False, "spaces_between_special_tokens": False, "best_of": None}, {}),
    ],
)  # fmt: skip
def test_spellings(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_sampling(given) == SamplingParams(**expected)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "[" * 10**5}, "temperature"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"detokenize": False}, "detokenize"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1.0}}, "logit_bias"),
        ({"seed": -(2**64)}, "seed"),
    ],
)
def test_what_cannot_be_honoured_is_named(given: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidParameterError, match=word):
        read_sampling(given)


@pytest.mark.parametrize("text", ["", "[]", "{", "1", "null", "[" * 10**5])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="sampling_parameters .* a JSON object"):
        read_json(text)
