"""The inner body of attention with many queries: scores of one chunk while another chunk's are weighed.

Scores are transposed, [keys, queries]: a query is a lane. Maxima and sums over keys are then elementwise over vector
registers, and nothing is ever broadcast or reduced across lanes. Values are transposed too, so that `values @ weights`
fills the whole width of the matrix unit. Two stages of two different pieces of work share one straight line of code,
which the compiler interleaves: the matrix unit multiplies queries and keys of the next piece while the vector unit
exponentiates this one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from .cache import LANES
from .prefill_plan import LOWEST, SUBLANES, PrefillPlan

LOG2_E = math.log2(math.e)
_BOTH_LAST = (((1,), (1,)), ((), ()))
_AS_MATRICES = (((1,), (0,)), ((), ()))


def start(plan: PrefillPlan, ref: dict[str, Any]) -> None:
    """Puts the rows of ones below the values; nothing writes there again."""
    if plan.blocks.matrix_sums:
        ones = jnp.ones((plan.kv_heads, SUBLANES, plan.blocks.keys), plan.dtype)
        ref["next_values"][:, plan.head_dim :] = ones


def step(
    plan: PrefillPlan, ref: dict[str, Any], *, current: Any, upcoming: Any, q_slot: Any, kv_slot: Any, masked: bool
) -> None:
    """Weighs the scores that the last step left, and leaves the scores of the upcoming piece.

    Args:
        current: which accumulators take the weighed values: a number of heads' group.
        upcoming: heads' group of the piece whose scores are computed.
        q_slot: queries of that piece.
        kv_slot: its keys and values.
        masked: whether `bias` applies to it.
    """
    keys, queries, heads = plan.blocks.keys, plan.blocks.queries, plan.heads
    ref["values"][...] = ref["next_values"][...]
    key: Any = None
    for i in range(heads):
        if i % max(1, heads // plan.kv_heads) == 0:
            of_group = i * plan.kv_heads // heads
            key, value = _keys_and_values(plan, ref, upcoming * heads // plan.groups + of_group, kv_slot)
            _turn(plan, ref, of_group, upcoming * heads // plan.groups + of_group, value)
        kv_head = i * plan.kv_heads // heads
        accumulator = current * heads + i

        before = ref["tops_so_far"][accumulator]
        top = jnp.maximum(before, jnp.max(ref["tops"][i], axis=0, keepdims=True))
        ref["tops_so_far"][accumulator] = top
        shrink = jnp.exp2(before - top)
        weights = jnp.exp2(_by_sublanes(ref["scores"][i]) - top)
        if not plan.blocks.matrix_sums:
            sums = ref["weights_so_far"]
            sums[accumulator] = sums[accumulator] * shrink + jnp.sum(weights, axis=0)
        weighed = _dot(ref["values"][kv_head], weights.reshape(keys, queries).astype(plan.dtype), _AS_MATRICES)
        so_far = _by_sublanes(ref["sums"][accumulator]) * shrink
        ref["sums"][accumulator] = so_far.reshape(plan.value_rows, queries) + weighed

        scores = _scaled(plan, _dot(key, ref["q"][q_slot, upcoming * heads + i], _BOTH_LAST))
        if masked:
            scores = jnp.minimum(scores, ref["bias"][...])
        ref["scores"][i] = scores
        ref["tops"][i] = jnp.max(_by_sublanes(scores), axis=0)


def reset(plan: PrefillPlan, ref: dict[str, Any], head: Any, sink: Any | None) -> None:
    """Empties the accumulators of one head; a sink is a key of weight 1 that carries no value."""
    queries = plan.blocks.queries
    top = LOWEST if sink is None else sink * LOG2_E
    ref["tops_so_far"][head] = jnp.full((SUBLANES, queries), top, jnp.float32)
    sums = jnp.zeros((plan.value_rows, queries), jnp.float32)
    weight = jnp.zeros((SUBLANES, queries), jnp.float32)
    if sink is not None:
        weight = jnp.where(jax.lax.broadcasted_iota(jnp.int32, weight.shape, 0) == 0, 1.0, 0.0)
    if plan.blocks.matrix_sums:
        ref["sums"][head, plan.head_dim :] = jnp.ones_like(weight) if sink is not None else weight
        ref["sums"][head, : plan.head_dim] = sums[: plan.head_dim]
    else:
        ref["sums"][head] = sums
        ref["weights_so_far"][head] = weight


def finish(plan: PrefillPlan, ref: dict[str, Any], head: Any) -> None:
    """Divides one head's sums by its weights and turns them into rows of the output."""
    sums = ref["sums"][head]
    if plan.blocks.matrix_sums:
        weight = sums[plan.head_dim : plan.head_dim + 1]
    else:
        weight = jnp.sum(ref["weights_so_far"][head], axis=0, keepdims=True)
    weight = jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
    out = (sums[: plan.head_dim] * (1.0 / weight)).astype(plan.dtype)
    if plan.out_width > plan.head_dim:
        padding = jnp.zeros((plan.out_width - plan.head_dim, plan.blocks.queries), plan.dtype)
        out = jnp.concatenate([out, padding])
    ref["out"][head] = out.T
    if plan.return_lse:
        top = ref["tops_so_far"][head, :1]
        ref["lse"][pl.ds(head, 1)] = (top + jnp.log2(weight)) / LOG2_E


def _keys_and_values(plan: PrefillPlan, ref: dict[str, Any], kv_head: Any, slot: Any) -> tuple[jax.Array, jax.Array]:
    """A chunk's keys and values [keys, window], in the dtype that is multiplied."""
    lane = pl.multiple_of(plan.window_start(kv_head), LANES)
    pages = ref["kv"][slot, :, :, pl.ds(lane, plan.window)]
    if pages.dtype != jnp.dtype(plan.dtype):
        pages = pages.astype(plan.dtype)
    flat = (plan.blocks.keys, plan.window)
    return pages[:, : plan.page].reshape(flat), pages[:, plan.page :].reshape(flat)


def _turn(plan: PrefillPlan, ref: dict[str, Any], of_group: int, kv_head: Any, value: jax.Array) -> None:
    """Transposes values, and keeps the rows of this KV head among those of its window."""
    if plan.head_dim % LANES == 0:
        ref["next_values"][of_group, : plan.head_dim] = value.T
        return
    ref["turned"][...] = value.T
    offset = pl.multiple_of(kv_head * plan.head_dim - plan.window_start(kv_head), 2 * SUBLANES)
    ref["next_values"][of_group, : plan.head_dim] = ref["turned"][pl.ds(offset, plan.head_dim)]


def _scaled(plan: PrefillPlan, scores: jax.Array) -> jax.Array:
    """Scores times scale and log2(e), capped."""
    cap = plan.spec.soft_cap
    if cap is None:
        return scores * (plan.spec.scale * LOG2_E)
    return jnp.tanh(scores * (plan.spec.scale / cap)) * (cap * LOG2_E)


def _by_sublanes(x: jax.Array) -> jax.Array:
    return x.reshape(-1, SUBLANES, x.shape[-1])


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
