"""The inner body of attention with many queries: a stage each of three consecutive pieces of work, in a straight line.

Scores are transposed, [keys, queries]: a query is a lane. Maxima and sums over keys are then elementwise over vector
registers, and nothing is ever broadcast or reduced across lanes. Values are transposed too, so that `values @ weights`
fills the whole width of the matrix unit. That unit multiplies keys and queries of one piece (`_score`) and values and
weights of the piece two before it (`_add`), while the vector unit exponentiates the piece between them (`_weigh`). The
stages meet in VMEM and never within one body, so that the compiler may place them side by side.

The compiler starts whatever has its operands, and keeps results until the matrix unit wants them, in registers that it
does not have. So where blocks say `whole`, keys and values are laid out before, as the matrix unit takes them, and no
register is needed to put halves together. Where they say `waiting`, the weights of a body's first heads, which the
vector unit has too much time for, come in quarters: each waits for the sum of those before it, as its maximum is raised
to a floor that lies below it anyway. Which of two floors it is depends on that sum, as far as the compiler can tell.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import LANES
from .prefill_plan import EMPTY, LOWEST, SUBLANES, PrefillPlan

LOG2_E = math.log2(math.e)
_FLOORS = (-3.2e38, -3.1e38)  # below LOWEST
_QUARTERS = 4
_BOTH_LAST = (((1,), (1,)), ((), ()))
_AS_MATRICES = (((1,), (0,)), ((), ()))


def start(plan: PrefillPlan, ref: dict[str, Any]) -> None:
    """Puts the rows of ones below the values; nothing writes there again."""
    if plan.blocks.matrix_sums:
        ones = jnp.ones((2, plan.kv_heads, SUBLANES, plan.blocks.keys), plan.dtype)
        rows = _stored(plan, ones)
        ref["values"][:, :, ref["values"].shape[2] - rows.shape[2] :] = rows


def lay(plan: PrefillPlan, ref: dict[str, Any], slot: Any) -> None:
    """Lays a chunk's keys and values in whole registers, each column of 128 lanes for itself.

    Where tokens have scales, numbers are multiplied by them here.
    """
    at_once = plan.columns_at_once
    scales = [ref[name] for name in ("of_keys", "of_values")] if plan.token_scales else []
    for half, column in enumerate(scales):
        for page in range(plan.pages):
            row = ref["scales"][slot, page, half : half + 1]
            column[page * plan.page : (page + 1) * plan.page] = jnp.broadcast_to(row, (LANES, plan.page)).T

    def some(at: Any, carry: Any) -> Any:
        lane = pl.multiple_of(at * at_once * LANES, LANES)
        for half, rows in enumerate(_rows(plan, ref["kv"][slot, :, :, pl.ds(lane, at_once * LANES)])):
            for i in range(at_once):
                column = rows[:, i * LANES : (i + 1) * LANES]
                if scales:  # of what was never written, numbers are 0 and scales anything
                    wide = column.astype(jnp.float32)
                    column = jnp.where(wide == 0, 0, wide * scales[half][...]).astype(plan.dtype)
                ref["whole"][half, at * at_once + i] = _stored(plan, column)
        return carry

    jax.lax.fori_loop(0, plan.lanes // LANES // at_once, some, 0)


@dataclass(frozen=True)
class Step:
    """A stage each of three pieces.

    Args:
        group: heads' group of the piece whose scores are computed; `bias` applies to it.
        q_slot: queries of that piece.
        kv_slot: its keys and values.
        weighed: where the statistics of the piece before it begin.
        weighed_first: whether that piece is the first of its tile and group, which finds another tile's statistics.
        added: where the sums of the piece before that begin.
        added_first: whether that one is the first of its tile and group.
    """

    plan: PrefillPlan
    ref: dict[str, Any]
    group: Any
    q_slot: Any
    kv_slot: Any
    weighed: Any
    weighed_first: Any
    added: Any
    added_first: Any

    def run(self) -> None:
        plan, ref = self.plan, self.ref
        sharing = plan.heads // plan.kv_heads
        for of_group in range(plan.kv_heads):
            kv_head = self.group * plan.heads // plan.groups + of_group
            key, value = self._keys_and_values(kv_head)
            for i in range(of_group * sharing, (of_group + 1) * sharing):
                if plan.blocks.waiting:
                    key = self._keys_and_values(kv_head)[0]
                self._add(i, _restored(plan, ref["values"][0, of_group]))
                self._weigh(i)
                self._score(i, key)
            turned = _stored(plan, self._turned(kv_head, value))
            held = slice(0, turned.shape[0])
            ref["values"][0, of_group, held] = ref["values"][1, of_group, held]
            ref["values"][1, of_group, held] = turned

    def _add(self, i: int, value: jax.Array) -> None:
        ref, rows = self.ref, (self.plan.value_rows, self.plan.blocks.queries)
        product = _dot(value, ref["weights"][i], _AS_MATRICES)
        before = jnp.where(self.added_first, 0.0, _by_sublanes(ref["sums"][self.added + i])) * ref["shrink"][i]
        ref["sums"][self.added + i] = before.reshape(rows) + product

    def _weigh(self, i: int) -> None:
        plan, ref, at = self.plan, self.ref, self.weighed + i
        before = jnp.where(self.weighed_first, EMPTY, ref["tops_so_far"][at])
        top = jnp.maximum(jnp.maximum(before, LOWEST), jnp.max(ref["tops"][i], axis=0, keepdims=True))
        ref["tops_so_far"][at] = top
        shrink = jnp.exp2(before - top)
        ref["shrink"][i] = shrink
        scores = _by_sublanes(ref["scores"][i])
        if plan.blocks.matrix_sums:
            weights = jnp.exp2(scores - top)
        else:
            held = jnp.where(self.weighed_first, 0.0, ref["weights_so_far"][at]) * shrink
            weights, ref["weights_so_far"][at] = self._weights(i, scores, top, held)
        ref["weights"][i] = weights.reshape(plan.blocks.keys, plan.blocks.queries).astype(plan.dtype)

    def _weights(self, i: int, scores: jax.Array, top: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weights of scores [keys / SUBLANES, SUBLANES, queries], and their sum with what there was."""
        parts = []
        for some in jnp.split(scores, _QUARTERS if i < self.plan.blocks.waiting else 1):
            top = jnp.maximum(top, jnp.where(total < 0, *_FLOORS)) if parts else top
            parts.append(jnp.exp2(some - top))
            total = total + jnp.sum(parts[-1], axis=0)
        return jnp.concatenate(parts), total

    def _score(self, i: int, key: jax.Array) -> None:
        plan, ref = self.plan, self.ref
        scores = _dot(key, ref["q"][self.q_slot, self.group * plan.heads + i], _BOTH_LAST)
        if plan.spec.soft_cap is not None:
            scores = jnp.tanh(scores) * (plan.spec.soft_cap * LOG2_E)
        scores = jnp.minimum(scores, ref["bias"][...])
        ref["scores"][i] = scores
        ref["tops"][i] = jnp.max(_by_sublanes(scores), axis=0)

    def _keys_and_values(self, kv_head: Any) -> tuple[jax.Array, jax.Array]:
        """A chunk's keys and values [keys, window], in the dtype that is multiplied."""
        plan, ref = self.plan, self.ref
        start = plan.window_start(kv_head)
        if plan.whole:
            columns = [start // LANES + i for i in range(plan.window // LANES)]
            parts = [[_restored(plan, ref["whole"][half, column]) for column in columns] for half in (0, 1)]
            return jnp.concatenate(parts[0], axis=1), jnp.concatenate(parts[1], axis=1)
        return _rows(plan, ref["kv"][self.kv_slot, :, :, pl.ds(pl.multiple_of(start, LANES), plan.window)])

    def _turned(self, kv_head: Any, value: jax.Array) -> jax.Array:
        """Values transposed, and of their window the rows of this KV head."""
        plan, ref = self.plan, self.ref
        if plan.head_dim % LANES == 0:
            return value.T
        ref["turned"][...] = value.T
        offset = pl.multiple_of(kv_head * plan.head_dim - plan.window_start(kv_head), 2 * SUBLANES)
        return ref["turned"][pl.ds(offset, plan.head_dim)]


def finish(plan: PrefillPlan, ref: dict[str, Any], head: Any, statistics: Any, sink: Any | None) -> None:
    """Divides one head's sums by its weights and turns them into rows of the output.

    Args:
        statistics: where the head's are.
        sink: logit of a key that takes part in the softmax and carries no value.
    """
    sums, top = ref["sums"][head], ref["tops_so_far"][statistics, :1]
    if plan.blocks.matrix_sums:
        weight = sums[plan.head_dim : plan.head_dim + 1]
    else:
        weight = jnp.sum(ref["weights_so_far"][statistics], axis=0, keepdims=True)
    shrink = 1.0
    if sink is not None:
        higher = jnp.maximum(top, sink * LOG2_E)
        shrink = jnp.exp2(top - higher)
        weight = weight * shrink + jnp.exp2(sink * LOG2_E - higher)
        top = higher
    out = (sums[: plan.head_dim] * (shrink / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny))).astype(plan.dtype)
    if plan.out_width > plan.head_dim:
        padding = jnp.zeros((plan.out_width - plan.head_dim, plan.blocks.queries), plan.dtype)
        out = jnp.concatenate([out, padding])
    ref["out"][head] = out.T
    if plan.return_lse:
        ref["lse"][pl.ds(head, 1)] = jnp.where(weight > 0, (top + jnp.log2(weight)) / LOG2_E, -jnp.inf)


def query_scale(plan: PrefillPlan) -> float:
    """What queries are multiplied by beforehand, so that scores need no multiplication."""
    cap = plan.spec.soft_cap
    return plan.spec.scale * LOG2_E if cap is None else plan.spec.scale / cap


def _rows(plan: PrefillPlan, pages: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values [keys, lanes] of some lanes of a chunk's pages, in the dtype that is multiplied."""
    if pages.dtype != jnp.dtype(plan.dtype):
        pages = pages.astype(plan.dtype)
    flat = (plan.blocks.keys, pages.shape[-1])
    return pages[:, : plan.page].reshape(flat), pages[:, plan.page :].reshape(flat)


def _stored(plan: PrefillPlan, rows: jax.Array) -> jax.Array:
    return pltpu.bitcast(rows, jnp.int32) if plan.words else rows


def _restored(plan: PrefillPlan, stored: jax.Array) -> jax.Array:
    return pltpu.bitcast(stored, plan.dtype) if plan.words else stored


def _by_sublanes(x: jax.Array) -> jax.Array:
    return x.reshape(-1, SUBLANES, x.shape[-1])


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
