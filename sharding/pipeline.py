"""Layers over stages: parts of a batch follow each other through them.

In tick t stage s works on part t - s; what it made goes to the next stage. The first and the last ticks leave stages
idle: with M parts and S stages, (S - 1) of M + S - 1 ticks of each stage; and every tick takes as long as the stage
with most layers. Parts are consecutive tokens, so a row may
lie in two of them; the first of the two is ahead at every stage, and has written its keys when the second one looks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..backends.base import PyTree
from ..models.kv_cache import RaggedBatch

type State = tuple[Float[Array, "T D"], PyTree]
"""Residual stream and cache."""


def num_parts(num_tokens: int, stages: int) -> int:
    """M: as many parts as there are stages, or the most below that into which the tokens divide."""
    return next(parts for parts in range(stages, 0, -1) if num_tokens % parts == 0)


def bubble(num_tokens: int, loads: Sequence[int]) -> float:
    """The fraction of the time in which a stage waits, on the average: for the first and the last parts, and for stages
    with more layers.

    Args:
        loads: layers of each stage.
    """
    stages = len(loads)
    parts = num_parts(num_tokens, stages)
    return 1 - parts * sum(loads) / (stages * max(loads) * (parts + stages - 1))


def run_stages(run: Callable[[Any, Any], Any], state: State, batch: RaggedBatch, *, axis: str, stages: int) -> State:
    """Runs each stage's layers on every part of the batch; what the last one made is on all stages.

    Args:
        run: applies the layers of this stage to a part.
        state: x of all tokens, and this stage's cache.
        batch: of all tokens.
        axis, stages: the mesh axis, and its size.
    """
    x, cache = state
    parts = num_parts(x.shape[0], stages)
    size = x.shape[0] // parts
    inputs = x.reshape(parts, size, -1)
    stage = jax.lax.axis_index(axis)

    def tick(t: Int[Array, ""], carry: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
        received, outputs, cache = carry
        active = (t >= stage) & (t - stage < parts)
        number = jnp.clip(t - stage, 0, parts - 1)
        mine = jnp.where(stage == 0, inputs[number], received)
        made, cache = run((mine, cache), part_of(batch, number * size, size, active=active))
        outputs = jnp.where(active, outputs.at[number].set(made), outputs)
        return jax.lax.ppermute(made, axis, [(s, s + 1) for s in range(stages - 1)]), outputs, cache

    carry = (jnp.zeros_like(inputs[0]), jnp.zeros_like(inputs), cache)
    _, outputs, cache = jax.lax.fori_loop(0, parts + stages - 1, tick, carry)
    return jax.lax.psum(jnp.where(stage == stages - 1, outputs, 0), axis).reshape(x.shape), cache


def part_of(batch: RaggedBatch, first: Int[Array, ""], size: int, *, active: Bool[Array, ""]) -> RaggedBatch:
    """Tokens `first : first + size` as a batch of the same rows, each as long as it is behind them; none if not
    active: nothing is written then."""
    starts, ends = batch.query_starts, batch.query_starts[1:]
    behind = jnp.clip(ends - (first + size), 0, jnp.diff(starts))
    return replace(
        batch,
        tokens=jax.lax.dynamic_slice_in_dim(batch.tokens, first, size),
        query_starts=jnp.where(active, jnp.clip(starts - first, 0, size), 0),
        kv_lens=batch.kv_lens - behind,
    )
