"""A request's row on the device: every parameter stands where models.row_state reads it."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.models.row_state import MAX_BAD_WORD_LEN, MAX_BAD_WORDS, MAX_STOP_IDS, RowState, SamplingRows
from distaff.models.sampling import draw
from distaff.serving.capabilities import PARAMETERS, Parameter, Where
from distaff.serving.rows import check_row, sampling_row
from distaff.serving.types import Request, SamplingParams

VOCABULARY = 100


def row(bad_word_ids: tuple[tuple[int, ...], ...] = (), **params: Any) -> dict[str, np.ndarray]:
    request = Request((1, 2, 3), SamplingParams(**{"seed": 5, **params}), bad_word_ids=bad_word_ids)
    eos = frozenset({9, 8})
    check_row(request, vocab_size=VOCABULARY, eos_ids=eos)
    return sampling_row(
        request.params, request=request, choice=2, prompt_len=3, vocab_size=VOCABULARY, eos_ids=eos, max_len=1000
    )


def present(ids: np.ndarray) -> list[int]:
    return ids[ids >= 0].tolist()


def test_a_row_has_the_shape_and_type_of_each_field() -> None:
    """Also with every parameter set, so that no path makes another type."""
    examples = {p.name: p.example for p in PARAMETERS if p.name not in ("max_tokens", "allowed_token_ids")}
    rows = [row(), row(**examples, bad_word_ids=((1, 2),)), row(allowed_token_ids=(1,))]
    expected = SamplingRows.empty(1, VOCABULARY)
    for each in rows:
        assert list(each) == [field.name for field in fields(SamplingRows)]
        for name, value in each.items():
            one = getattr(expected, name)[0]
            assert (value.shape, value.dtype) == (one.shape, one.dtype), name


LOGITS = 3 * np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
"""Of the token behind each token."""
DRAW = jax.jit(draw)


@cache
def answer(params: SamplingParams, bad_word_ids: tuple[tuple[int, ...], ...] = ()) -> tuple[list[int], float]:
    """Tokens drawn one by one behind a prompt, and the sum of what is told of their log-probabilities."""
    request = Request((1, 2, 3), params, bad_word_ids=bad_word_ids)
    row = sampling_row(
        params,
        request=request,
        choice=0,
        prompt_len=3,
        vocab_size=VOCABULARY,
        eos_ids=frozenset(range(50)),  # so many that min_tokens shows
        max_len=1000,
    )
    rows = SamplingRows(**{name: jnp.asarray(value)[None] for name, value in row.items()})
    tokens, told = list(request.prompt), 0.0
    for position in range(3, 19):
        history = np.zeros((1, 32), np.int32)
        history[0, :position] = tokens
        slots, positions = jnp.zeros(1, jnp.int32), jnp.full(1, position, jnp.int32)
        drawn, logprobs = DRAW(LOGITS[tokens[-1]][None], RowState(jnp.asarray(history), rows), slots, positions)
        tokens.append(int(drawn[0]))
        told += float(logprobs.chosen[0])
    return tokens[3:], told


@pytest.mark.parametrize("parameter", [p for p in PARAMETERS if p.where is Where.DEVICE], ids=lambda p: p.name)
def test_each_parameter_of_the_device_changes_what_is_drawn(parameter: Parameter) -> None:
    plain = SamplingParams(seed=0)
    before = answer(plain)
    words = ((before[0][2], before[0][3]),) if parameter.name == "bad_words" else ()
    if parameter.name == "prompt_logprobs":
        return  # it chooses the program
    assert answer(replace(plain, **{parameter.name: parameter.example}), words) != before


def test_numbers_are_passed_on() -> None:
    given = row(
        temperature=0.5, top_k=7, top_p=0.75, min_p=0.25, typical_p=0.5, repetition_penalty=1.5, presence_penalty=-1,
        frequency_penalty=2, logprobs=4,
    )  # fmt: skip
    told = {name: value.item() for name, value in given.items() if value.shape == ()}
    assert told == {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.75,
        "min_p": 0.25,
        "typical_p": 0.5,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "choices": 2,
        "prompt_lens": 3,
        "min_lens": 3,
        "restricted": False,
        "num_logprobs": 4,
    }
    assert row()["num_logprobs"] == -1 and row(logprobs=0)["num_logprobs"] == 0
    assert row(top_k=2**31 - 1)["top_k"] == VOCABULARY


def test_a_seed_is_two_words() -> None:
    assert row(seed=2**63 + 3)["seeds"].tolist() == [2**31, 3]
    assert row(seed=2**64 - 1)["seeds"].tolist() == [2**32 - 1, 2**32 - 1]


def test_end_tokens_join_the_stop_tokens_unless_ignored() -> None:
    assert present(row()["stop_ids"]) == [8, 9]
    assert present(row(stop_token_ids=(70, 9))["stop_ids"]) == [8, 9, 70]
    assert present(row(stop_token_ids=(70,), ignore_eos=True)["stop_ids"]) == [70]


def test_the_least_length_counts_from_the_prompt_and_ends_with_the_context() -> None:
    assert row(min_tokens=10)["min_lens"] == 13
    assert row(min_tokens=2**31 - 1, max_tokens=None)["min_lens"] == 1000


def test_biases_stand_beside_their_tokens() -> None:
    made = row(logit_bias={7: -1.5, 3: 100})
    assert present(made["bias_ids"]) == [7, 3] and made["bias"][:3].tolist() == [-1.5, 100, 0]


def test_bad_words_stand_at_the_right() -> None:
    words = row(((5,), (1, 2, 3)))["bad_words"]
    assert words[0].tolist() == [-1] * (MAX_BAD_WORD_LEN - 1) + [5]
    assert words[1].tolist() == [-1] * (MAX_BAD_WORD_LEN - 3) + [1, 2, 3]
    assert (words[2:] == -1).all()


def test_allowed_tokens_are_bits() -> None:
    made = row(allowed_token_ids=(0, 31, 32, 99))
    words = made["allowed"].tolist()
    bits = [len(words) * bit + word for bit in range(32) for word, value in enumerate(words) if value >> bit & 1]
    assert bits == [0, 31, 32, 99] and made["restricted"]
    assert not row()["restricted"]


def test_rows_do_not_share_what_can_be_written() -> None:
    one, other = row(), row()
    for name, value in one.items():
        assert not value.flags.writeable or not np.shares_memory(value, other[name]), name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (dict(stop_token_ids=(5, 100)), r"^stop_token_ids is 100, expected token ids from 0 to 99"),
        (dict(allowed_token_ids=(100,)), r"^allowed_token_ids is 100, expected token ids from 0 to 99"),
        (dict(logit_bias={100: 1.0}), r"^logit_bias is 100, expected token ids from 0 to 99"),
        (dict(bad_word_ids=((1, 100),)), r"^bad_words is 100, expected token ids from 0 to 99"),
        (dict(bad_word_ids=((1,) * (MAX_BAD_WORD_LEN + 1),)), r"^bad_words has 17 tokens.*at most 16$"),
        (dict(bad_word_ids=((1, 2),) * (MAX_BAD_WORDS + 1)), r"^bad_words has 129 spellings.*at most 128$"),
        (dict(stop_token_ids=range(20, 20 + MAX_STOP_IDS)), r"^stop_token_ids has 66 token ids.*at most 64$"),
        (dict(allowed_token_ids=(4,), bad_word_ids=((4,),)), r"^allowed_token_ids is \(4,\), expected .* bad_words"),
        (dict(allowed_token_ids=(8, 9), min_tokens=1), r"^allowed_token_ids is \(8, 9\), expected .* min_tokens"),
        (dict(bad_word_ids=tuple((token,) for token in range(100))), r"^bad_words is 100, expected .*100 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        row(**params)


@pytest.mark.parametrize("token", [-1, 100])
def test_a_prompt_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InvalidParameterError, match=f"prompt is {token}, expected token ids from 0 to 99"):
        check_row(Request((1, token, 2)), vocab_size=VOCABULARY, eos_ids=frozenset())


def test_what_just_fits_is_accepted() -> None:
    row(stop_token_ids=range(20, 18 + MAX_STOP_IDS), bad_word_ids=((1, 2),) * MAX_BAD_WORDS)
    row(stop_token_ids=range(20, 20 + MAX_STOP_IDS), ignore_eos=True)
    row(allowed_token_ids=(8, 9, 10), min_tokens=1)
    row(allowed_token_ids=(8, 9), min_tokens=1, ignore_eos=True)
