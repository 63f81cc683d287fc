"""What the device remembers of each running sequence: its text and its sampling parameters.

A sequence owns a slot (0 to R - 1) from admission to its end. The host uploads the slot's row once; after that every
step reads and writes it on the device, so that the next step can be dispatched before this one's tokens are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

# What a row holds at most. Requests beyond these are refused at submit.
MAX_STOP_IDS = 64
MAX_BIAS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_LEN = 16


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows:
    """Each slot's sampling parameters. An id of -1 is padding.

    `temperature` 0 takes the most likely token. `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 leave everything
    in; `repetition_penalty` 1, `presence_penalty` 0 and `frequency_penalty` 0 change nothing.
    """

    temperature: Float[Array, "R"]
    top_k: Int[Array, "R"]
    top_p: Float[Array, "R"]
    min_p: Float[Array, "R"]
    typical_p: Float[Array, "R"]
    repetition_penalty: Float[Array, "R"]  # counts prompt and answer
    presence_penalty: Float[Array, "R"]  # counts the answer, as does the next
    frequency_penalty: Float[Array, "R"]
    seeds: UInt32[Array, "R 2"]  # 64 bits as two words
    choices: Int[Array, "R"]  # numbers the answers to one request
    prompt_lens: Int[Array, "R"]
    min_lens: Int[Array, "R"]  # a token that will stand before this position is none of stop_ids
    stop_ids: Int[Array, "R stop"]
    bias_ids: Int[Array, "R bias"]  # each at most once
    bias: Float[Array, "R bias"]
    bad_words: Int[Array, "R words length"]  # each right-aligned
    allowed: UInt32[Array, "R W"]  # of W = ceil(V / 32) words: token v may be drawn if bit v // W of word v % W is set
    restricted: Bool[Array, "R"]  # whether `allowed` counts
    num_logprobs: Int[Array, "R"]  # -1: none; n: the drawn token's and the n most likely

    @classmethod
    def stack(cls, rows: Sequence[Mapping[str, np.ndarray]]) -> "SamplingRows":
        """Rows given one by one, each as its fields by name (numpy arrays)."""
        fields: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return cls(**fields)

    @classmethod
    def empty(cls, num_rows: int, vocab_size: int) -> "SamplingRows":
        """Rows that take the most likely token (numpy arrays)."""

        def full(fill: float, dtype: type, *shape: int) -> Any:
            return np.full((num_rows, *shape), fill, dtype)

        return cls(
            temperature=full(0, np.float32),
            top_k=full(0, np.int32),
            top_p=full(1, np.float32),
            min_p=full(0, np.float32),
            typical_p=full(1, np.float32),
            repetition_penalty=full(1, np.float32),
            presence_penalty=full(0, np.float32),
            frequency_penalty=full(0, np.float32),
            seeds=full(0, np.uint32, 2),
            choices=full(0, np.int32),
            prompt_lens=full(0, np.int32),
            min_lens=full(0, np.int32),
            stop_ids=full(-1, np.int32, MAX_STOP_IDS),
            bias_ids=full(-1, np.int32, MAX_BIAS),
            bias=full(0, np.float32, MAX_BIAS),
            bad_words=full(-1, np.int32, MAX_BAD_WORDS, MAX_BAD_WORD_LEN),
            allowed=full(0, np.uint32, -(-vocab_size // 32)),
            restricted=full(False, np.bool_),
            num_logprobs=full(-1, np.int32),
        )


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowState:
    """`history[slot, p]` is the token at position p of the slot's text, prompt and answer."""

    history: Int[Array, "R S"]
    rows: SamplingRows

    @classmethod
    def empty(cls, num_slots: int, max_len: int, vocab_size: int) -> "RowState":
        """Slots without a text (numpy arrays)."""
        history: Any = np.zeros((num_slots, max_len), np.int32)
        return cls(history, SamplingRows.empty(num_slots, vocab_size))


def admit(state: RowState, slots: Int[Array, "A"], rows: RowState) -> RowState:
    """The state with row i of `rows` in slot `slots[i]`; a slot of R leaves its row out."""
    return jax.tree.map(lambda kept, new: kept.at[slots].set(new, mode="drop"), state, rows)


def take[T](tree: T, index: Int[Array, "B"]) -> T:
    """Rows `index` of every leaf. They must exist: an index that may be negative or too large takes eight operations
    more to compile, for each leaf."""

    def rows(leaf: Array) -> Array:
        return jnp.asarray(leaf).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)

    return jax.tree.map(rows, tree)
