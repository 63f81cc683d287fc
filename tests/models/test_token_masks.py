"""Allowed tokens, bad words, least lengths and biases, each against a spelled-out answer or numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.models.row_state import MAX_BAD_WORD_LEN, SamplingRows
from distaff.models.token_masks import add_bias, allow, ban_stops, ban_words

SIZE = 40
ONES = jnp.ones((1, SIZE))


def left(logits: object) -> list[int]:
    return np.flatnonzero(np.asarray(logits)[0] > -np.inf).tolist()


def without(*ids: int) -> list[int]:
    return [token for token in range(SIZE) if token not in ids]


def one_row(**fields: object) -> SamplingRows:
    row = SamplingRows.empty(1, SIZE)
    arrays = {name: np.asarray([value], getattr(row, name).dtype) for name, value in fields.items()}
    return jax.tree.map(jnp.asarray, replace(row, **arrays))


def with_words(*words: tuple[int, ...]) -> SamplingRows:
    table = np.full((128, MAX_BAD_WORD_LEN), -1)
    for i, word in enumerate(words):
        table[i, -len(word) :] = word
    return one_row(bad_words=table)


def with_allowed(*ids: int) -> SamplingRows:
    bits = np.zeros(2, np.uint32)
    for token in ids:
        bits[token % 2] |= np.uint32(1 << token // 2)
    return one_row(restricted=True, allowed=bits)


def test_allowed_tokens_are_the_bits_that_are_set() -> None:
    assert left(allow(ONES, with_allowed(0, 31, 32, 39))) == [0, 31, 32, 39]


def test_a_row_that_is_not_restricted_allows_everything() -> None:
    assert left(allow(ONES, one_row(restricted=False))) == without()


def test_a_mask_and_allowed_tokens_both_count() -> None:
    mask = jnp.zeros((1, SIZE), bool).at[0, jnp.asarray([3, 31])].set(True)
    assert left(allow(ONES, with_allowed(0, 31), mask)) == [31]
    assert left(allow(ONES, one_row(restricted=False), mask)) == [3, 31]


def test_masks_that_leave_nothing_are_passed_over() -> None:
    assert left(allow(ONES, with_allowed())) == without()
    only = jnp.full((1, SIZE), -jnp.inf).at[0, 5].set(1)
    stops = one_row(min_lens=9, stop_ids=[5] + [-1] * 63)
    assert left(ban_stops(only, stops, jnp.asarray([0]))) == [5]
    assert left(ban_words(only, with_words((5,)), jnp.zeros((1, 4), jnp.int32), jnp.asarray([4]))) == [5]


@pytest.mark.parametrize(
    ("words", "text", "banned"),
    [
        ([(4,)], [], [4]),
        ([(4,), (6,)], [1, 2], [4, 6]),
        ([(1, 2)], [1], [2]),
        ([(1, 2)], [1, 3], []),
        ([(1, 2)], [], []),
        ([(0, 2)], [], []),  # history is filled with zeros
        ([(1, 2, 3)], [1, 2], [3]),
        ([(1, 2, 3)], [2], []),
        ([(1, 2, 3), (2, 5), (7,)], [1, 2], [3, 5, 7]),
        ([tuple(range(16))], list(range(15)), [15]),
        ([tuple(range(16))], [9, *range(1, 15)], []),
        ([(2, 2, 2)], [2, 2, 2, 2], [2]),
    ],
)
def test_a_bad_word_loses_its_last_token_behind_the_others(
    words: list[tuple[int, ...]], text: list[int], banned: list[int]
) -> None:
    history = np.zeros((1, 24), np.int32)
    history[0, : len(text)] = text
    got = ban_words(ONES, with_words(*words), jnp.asarray(history), jnp.asarray([len(text)]))
    assert left(got) == without(*banned)


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=MAX_BAD_WORD_LEN), max_size=8),
    st.lists(st.integers(0, 2), max_size=24),
)
@settings(max_examples=100)
def test_bad_words_are_those_that_a_search_of_the_text_finds(words: list[list[int]], text: list[int]) -> None:
    history = np.full((1, 24), 1, np.int32)
    history[0, : len(text)] = text
    got = ban_words(ONES, with_words(*map(tuple, words)), jnp.asarray(history), jnp.asarray([len(text)]))
    banned = [
        word[-1] for word in words if len(word) - 1 <= len(text) and text[len(text) - len(word) + 1 :] == word[:-1]
    ]
    assert left(got) == without(*banned)


def test_stops_are_masked_below_the_least_length_and_not_at_it() -> None:
    each = one_row(min_lens=7, stop_ids=[3, -1, 9] + [-1] * 61)
    assert left(ban_stops(ONES, each, jnp.asarray([6]))) == without(3, 9)
    assert left(ban_stops(ONES, each, jnp.asarray([7]))) == without()


def test_bias_is_added_to_the_tokens_it_names() -> None:
    ids, bias = np.full(1024, -1), np.full(1024, 9.0)
    ids[[0, 5]], bias[[0, 5]] = [39, 2], [-1.5, 100]
    want = np.ones(SIZE)
    want[39], want[2] = -0.5, 101
    np.testing.assert_array_equal(add_bias(ONES, one_row(bias_ids=ids, bias=bias))[0], want)


def test_bias_does_not_bring_a_masked_token_back() -> None:
    ids, bias = np.full(1024, -1), np.zeros(1024)
    ids[0], bias[0] = 3, 100
    got = add_bias(jnp.full((1, SIZE), -jnp.inf).at[0, 0].set(0), one_row(bias_ids=ids, bias=bias))
    assert left(got) == [0]
