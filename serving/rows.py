"""A request's sampling parameters as one row of `models.row_state.SamplingRows`, and whether they fit into one."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from ..backends.errors import InvalidParameterError
from ..models.row_state import MAX_BAD_WORD_LEN, MAX_BAD_WORDS, MAX_BIAS, MAX_STOP_IDS
from .domains import TooManyError
from .types import Request, SamplingParams

type Row = dict[str, np.ndarray]
"""The fields of SamplingRows by name, without their leading row axis."""


def stop_ids(params: SamplingParams, eos_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end an answer."""
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)


def check_row(request: Request, *, vocab_size: int, eos_ids: frozenset[int]) -> None:
    """Raises InvalidParameterError for what the request alone cannot tell: token ids that the vocabulary lacks,
    more than a row holds, or nothing left to draw."""
    params = request.params
    for token in (min(request.prompt), max(request.prompt)):
        if not 0 <= token < vocab_size:
            raise InvalidParameterError("prompt", token, f"token ids from 0 to {vocab_size - 1}")
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        for token in getattr(params, name) or ():
            if token >= vocab_size:
                raise InvalidParameterError(name, token, f"token ids from 0 to {vocab_size - 1}, the vocabulary")
    stops = stop_ids(params, eos_ids)
    if len(stops) > MAX_STOP_IDS:
        raise TooManyError("stop_token_ids", len(stops), MAX_STOP_IDS, "token ids (with the model's end tokens)")
    words = request.bad_word_ids
    if len(words) > MAX_BAD_WORDS:
        raise TooManyError("bad_words", len(words), MAX_BAD_WORDS, "spellings (with and without a space before them)")
    for word in words:
        if len(word) > MAX_BAD_WORD_LEN:
            raise TooManyError("bad_words", len(word), MAX_BAD_WORD_LEN, "tokens in one word")
        for token in word:
            if not 0 <= token < vocab_size:
                raise InvalidParameterError("bad_words", token, f"token ids from 0 to {vocab_size - 1}, the vocabulary")
    _check_choice_left(request, vocab_size, stops)


def _check_choice_left(request: Request, vocab_size: int, stops: frozenset[int]) -> None:
    """A row of which every token is masked has no meaning."""
    params = request.params
    never = {word[0] for word in request.bad_word_ids if len(word) == 1}
    masked = never | stops if params.min_tokens else never
    if params.allowed_token_ids is None:
        if len(masked) >= vocab_size:
            raise InvalidParameterError("bad_words", len(never), f"words that leave some of {vocab_size} tokens")
    elif masked.issuperset(params.allowed_token_ids):
        shown = params.allowed_token_ids[:8]
        raise InvalidParameterError("allowed_token_ids", shown, "ids that bad_words and min_tokens leave one of")


def sampling_row(
    params: SamplingParams,
    *,
    request: Request,
    choice: int,
    prompt_len: int,
    vocab_size: int,
    eos_ids: frozenset[int],
    max_len: int,
) -> Row:
    """The row of one choice of a request that `check_row` let pass. Shared arrays are read-only.

    Args:
        params: with the seed filled in.
        max_len: positions that a text may have, where `min_tokens` ends at the latest.
    """
    assert params.seed is not None
    bias_ids, bias = _bias(params)
    stops = sorted(stop_ids(params, eos_ids))
    allowed = params.allowed_token_ids
    return {
        "temperature": _real(params.temperature),
        "top_k": _whole(min(params.top_k, vocab_size)),
        "top_p": _real(params.top_p),
        "min_p": _real(params.min_p),
        "typical_p": _real(params.typical_p),
        "repetition_penalty": _real(params.repetition_penalty),
        "presence_penalty": _real(params.presence_penalty),
        "frequency_penalty": _real(params.frequency_penalty),
        "seeds": np.array([params.seed >> 32, params.seed & 0xFFFFFFFF], np.uint32),
        "choices": _whole(choice),
        "prompt_lens": _whole(prompt_len),
        "min_lens": _whole(min(prompt_len + params.min_tokens, max_len)),
        "stop_ids": _padded(stops, MAX_STOP_IDS),
        "bias_ids": bias_ids,
        "bias": bias,
        "bad_words": _bad_words(request.bad_word_ids),
        "allowed": _no_tokens(vocab_size) if allowed is None else _bits(allowed, vocab_size),
        "restricted": np.array(allowed is not None),
        "num_logprobs": _whole(-1 if params.logprobs is None else params.logprobs),
    }


def _real(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _whole(value: int) -> np.ndarray:
    return np.array(value, np.int32)


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    row = np.full(size, -1, np.int32)
    row[: len(ids)] = ids
    return row


@cache
def _absent(*shape: int) -> np.ndarray:
    """Ids that are not there, for the many requests without them."""
    ids = np.full(shape, -1, np.int32)
    ids.flags.writeable = False
    return ids


@cache
def _no_tokens(vocab_size: int) -> np.ndarray:
    bits = np.zeros(-(-vocab_size // 32), np.uint32)
    bits.flags.writeable = False
    return bits


@cache
def _no_bias() -> np.ndarray:
    bias = np.zeros(MAX_BIAS, np.float32)
    bias.flags.writeable = False
    return bias


def _bias(params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    if not params.logit_bias:
        return _absent(MAX_BIAS), _no_bias()
    bias = np.zeros(MAX_BIAS, np.float32)
    bias[: len(params.logit_bias)] = list(params.logit_bias.values())
    return _padded(list(params.logit_bias), MAX_BIAS), bias


def _bad_words(words: Sequence[Sequence[int]]) -> np.ndarray:
    """[MAX_BAD_WORDS, MAX_BAD_WORD_LEN], each word at the right end of its line."""
    if not words:
        return _absent(MAX_BAD_WORDS, MAX_BAD_WORD_LEN)
    lines = np.full((MAX_BAD_WORDS, MAX_BAD_WORD_LEN), -1, np.int32)
    for line, word in zip(lines, words, strict=False):
        line[MAX_BAD_WORD_LEN - len(word) :] = word
    return lines


def _bits(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """[W], bit v // W of word v % W set for each id v; see SamplingRows.allowed."""
    bits = np.zeros(-(-vocab_size // 32), np.uint32)
    tokens = np.array(ids, np.uint32)
    np.bitwise_or.at(bits, tokens % len(bits), np.uint32(1) << tokens // len(bits))
    return bits
