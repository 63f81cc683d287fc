"""What the attention kernels share: a tile of query rows against blocks of keys, with the softmax carried along.

M rows of a tile, S keys of a block, W lanes of a part of the head's width. Scores are in units of log2(e), so that
the exponentials are powers of two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as triton
from jaxtyping import Array, Bool, Float, Int

from ..base import AttentionSpec

LOG2_E = math.log2(math.e)
MIN_TILE = 16
"""Fewest rows, keys and lanes of a dot product on a tensor core."""

Ref = Any
"""A reference to an array in device memory, as Pallas hands it to a kernel."""

Parts = tuple[Array, ...]
"""A tile whose lanes are split as split_lanes says."""

State = tuple[Array, Array, Parts]
"""Largest score [M], sum of exponentials [M] and weighted sum of values [M, W] for each part."""


@dataclass(frozen=True)
class Lanes:
    """Part of a head's width: `used` lanes from `start` on, in a tile that is `width` wide (a power of two)."""

    start: int
    width: int
    used: int


def split_lanes(head_dim: int) -> tuple[Lanes, ...]:
    """The width as a sum of powers of two, so that 80, 96 and 192 waste no lane of a dot product."""
    parts: list[Lanes] = []
    start = 0
    while start < head_dim:
        left = head_dim - start
        width = max(MIN_TILE, 1 << (left.bit_length() - 1))
        parts.append(Lanes(start, width, min(width, left)))
        start += width
    return tuple(parts)


def load_tile(ref: Ref, at: Sequence[Any], lanes: Sequence[Lanes], mask: Bool[Array, "R"] | None) -> Parts:
    """Reads rows of the last axis of `ref`.

    Args:
        at: index of every axis but the last: numbers, or arrays with one entry for each row.
        mask: rows to read; the others are zero. None reads all.
    """
    return tuple(
        triton.load(ref.at[where], mask=there, other=None if there is None else 0)
        for where, there in _places(at, lanes, mask)
    )


def store_tile(ref: Ref, at: Sequence[Any], lanes: Sequence[Lanes], mask: Bool[Array, "R"], tile: Parts) -> None:
    """Writes rows of the last axis of `ref` where the mask holds; indices as for load_tile."""
    for (where, there), part in zip(_places(at, lanes, mask), tile, strict=True):
        triton.store(ref.at[where], part.astype(ref.dtype), mask=there)


def _places(
    at: Sequence[Any], lanes: Sequence[Lanes], mask: Bool[Array, "R"] | None
) -> list[tuple[tuple[Any, ...], Array | None]]:
    rows = tuple(index[:, None] if getattr(index, "ndim", 0) else index for index in at)
    places: list[tuple[tuple[Any, ...], Array | None]] = []
    for part in lanes:
        number = jnp.arange(part.width, dtype=jnp.int32)
        there = None if mask is None else mask[:, None]
        if part.used < part.width:
            inside = (number < part.used)[None, :]
            there = inside if there is None else there & inside
        if there is not None:
            height = next(index.shape[0] for index in at if getattr(index, "ndim", 0))
            there = jnp.broadcast_to(there, (height, part.width))
        places.append(((*rows, part.start + number[None, :]), there))
    return places


def empty_state(rows: int, lanes: Sequence[Lanes], sinks: Float[Array, "M"] | None = None) -> State:
    """Nothing seen yet but the sinks: logits without a value, -inf where a row has none."""
    acc = tuple(jnp.zeros((rows, part.width), jnp.float32) for part in lanes)
    if sinks is None:
        return jnp.full((rows,), -jnp.inf, jnp.float32), jnp.zeros((rows,), jnp.float32), acc
    top = sinks.astype(jnp.float32) * LOG2_E
    return top, jnp.where(top == -jnp.inf, 0.0, 1.0), acc


def attend(
    state: State, q: Parts, keys: Parts, values: Parts, spec: AttentionSpec, visible: Bool[Array, "M S"] | None
) -> State:
    """The state after one more block of keys; `visible` None means all of it. Unseen values must be finite."""
    top, total, acc = state
    scores = sum(_dot(a, b.astype(a.dtype), 1) for a, b in zip(q, keys, strict=True))
    unit = 1.0  # of the scores, in powers of two
    if spec.soft_cap is not None:
        # cap * tanh(x / cap), by the unit that has powers of two: the library's tanh branches.
        power = jnp.exp2(scores * (2 * LOG2_E * spec.scale / spec.soft_cap))
        scores = (spec.soft_cap * LOG2_E) * (1.0 - 2.0 / (power + 1.0))
    elif spec.scale > 0 and q[0].dtype.itemsize < 4:
        # Multiplied where the largest is taken off, by one instruction for both. (With fp32 tiles registers run out.)
        unit = spec.scale * LOG2_E
    else:
        scores *= spec.scale * LOG2_E
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)

    new = jnp.maximum(top, jnp.max(scores, axis=1) * unit)
    base = jnp.where(new == -jnp.inf, 0.0, new)  # a row that has seen no key: its exponentials are 0, not NaN
    kept, weights = jnp.exp2(top - base), jnp.exp2(scores * unit - base[:, None])
    total = total * kept + jnp.sum(weights, axis=1)
    weights = weights.astype(q[0].dtype)
    acc = tuple(
        old * kept[:, None] + _dot(weights, value.astype(weights.dtype), 0)
        for old, value in zip(acc, values, strict=True)
    )
    return new, total, acc


def finish(state: State) -> tuple[Parts, Float[Array, "M"]]:
    """The attention output, zero where no key was seen, and the base-2 log of the sum of exponentials."""
    top, total, acc = state
    empty = total == 0.0
    inverse = 1.0 / jnp.where(empty, 1.0, total)
    return tuple(part * inverse[:, None] for part in acc), jnp.where(
        empty, -jnp.inf, top + jnp.log2(jnp.where(empty, 1.0, total))
    )


def _dot(a: Float[Array, "M I"], b: Float[Array, "A B"], contracted: int) -> Float[Array, "M O"]:
    # Tensor cores round fp32 operands to tf32 (10 bits) unless told not to.
    precision = "highest" if a.dtype == jnp.float32 else None
    numbers = (((1,), (contracted,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def cdiv(a: Int[Array, ""], b: int) -> Int[Array, ""]:
    """Division of a non-negative number, rounded up."""
    return jax.lax.div(a + (b - 1), jnp.int32(b))
