"""The table of sampling parameters: it has every field, and what it says is what happens."""

from dataclasses import fields
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.models.logprobs import MAX_LOGPROBS
from distaff.models.row_state import MAX_BAD_WORDS, MAX_BIAS, MAX_STOP_IDS
from distaff.serving import SamplingParams
from distaff.serving.capabilities import PARAMETERS, Parameter

REFUSED = [(parameter, value) for parameter in PARAMETERS for value in parameter.refused]


def test_the_table_has_every_field_once_in_order_with_its_default() -> None:
    assert [(p.name, p.default) for p in PARAMETERS] == [(f.name, f.default) for f in fields(SamplingParams)]


@pytest.mark.parametrize(("parameter", "value"), REFUSED, ids=lambda part: getattr(part, "name", repr(part)))
def test_a_value_outside_its_domain_is_refused_by_name(parameter: Parameter, value: Any) -> None:
    with pytest.raises(InvalidParameterError, match=rf"^{parameter.name} is .*, expected ") as caught:
        SamplingParams(**{parameter.name: value})
    assert caught.value.field == parameter.name and caught.value.exit_code == 2


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_the_example_is_accepted_and_is_no_default(parameter: Parameter) -> None:
    read = getattr(SamplingParams(**{parameter.name: parameter.example}), parameter.name)
    assert read == parameter.example != parameter.default
    assert parameter.domain.read(parameter.name, parameter.default) == parameter.default
    assert parameter.refused and parameter.domain.expected and parameter.doc.endswith(".")


@pytest.mark.parametrize(
    ("name", "many", "limit"),
    [
        ("stop_token_ids", range, MAX_STOP_IDS),
        ("logit_bias", lambda count: dict.fromkeys(range(count), 1.0), MAX_BIAS),
        ("bad_words", lambda count: tuple(map(str, range(count))), MAX_BAD_WORDS),
    ],
)
def test_more_than_a_row_holds_is_refused_with_the_numbers(name: str, many: Any, limit: int) -> None:
    SamplingParams(**{name: many(limit)})
    with pytest.raises(InvalidParameterError, match=rf"^{name} has {limit + 1} .*, expected at most {limit}$"):
        SamplingParams(**{name: many(limit + 1)})


def test_each_number_s_ends_are_accepted() -> None:
    SamplingParams(max_tokens=1, temperature=0, top_k=0, top_p=1, min_p=0, seed=0, logprobs=0, prompt_logprobs=0)
    SamplingParams(max_tokens=2**31 - 1, temperature=100, top_k=2**31 - 1, top_p=1e-9, min_p=1, seed=2**64 - 1)
    SamplingParams(typical_p=1e-9, repetition_penalty=0.01, presence_penalty=-2, frequency_penalty=-2)
    SamplingParams(repetition_penalty=100, presence_penalty=2, frequency_penalty=2, n=1024)
    SamplingParams(logprobs=MAX_LOGPROBS, prompt_logprobs=MAX_LOGPROBS, logit_bias={0: -100, 2**31 - 1: 100})


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("stop", "END", ("END",)),
        ("stop", ["a", "b", "a"], ("a", "b")),
        ("bad_words", "damn", ("damn",)),
        ("stop_token_ids", [3, 1, 3], (3, 1)),
        ("allowed_token_ids", range(3), (0, 1, 2)),
        ("logit_bias", {}, None),
    ],
)
def test_what_means_the_same_is_read_as_the_same(name: str, given: Any, read: Any) -> None:
    assert getattr(SamplingParams(**{name: given}), name) == read


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_beyond_every_float_is_refused(value: int) -> None:
    with pytest.raises(InvalidParameterError, match="^temperature is"):
        SamplingParams(temperature=value)


@pytest.mark.parametrize(("name", "value"), [("stop", [["a"]]), ("stop_token_ids", [[1]]), ("logit_bias", {(1,): 1})])
def test_nested_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameterError, match=f"^{name} is"):
        SamplingParams(**{name: value})


def test_the_least_length_is_at_most_the_greatest() -> None:
    with pytest.raises(InvalidParameterError, match=r"^min_tokens is 129, expected at most max_tokens \(128\)$"):
        SamplingParams(min_tokens=129)
    SamplingParams(min_tokens=128)
    SamplingParams(min_tokens=10**6, max_tokens=None)


def test_without_a_greatest_length_the_context_decides() -> None:
    assert SamplingParams(max_tokens=None).num_tokens(50) == 50
    assert SamplingParams(max_tokens=10).num_tokens(50) == 10
    assert SamplingParams(max_tokens=10).num_tokens(5) == 5


def test_equal_parameters_hash_alike() -> None:
    one, other = (SamplingParams(logit_bias={1: 2.0}, stop=("a",)) for _ in range(2))
    assert one == other and hash(one) == hash(other) and one != SamplingParams(logit_bias={1: 3.0}, stop=("a",))
