"""The inner body of attention with many queries: a stage each of three consecutive pieces of work, in a straight line.

Scores are transposed, [keys, queries]: a query is a lane. Maxima and sums over keys are then elementwise over vector
registers, and nothing is ever broadcast or reduced across lanes. Values are transposed too, so that `values @ weights`
fills the whole width of the matrix unit. That unit multiplies keys and queries of one piece (`_score`) and values and
weights of the piece two before it (`_add`), while the vector unit exponentiates the piece between them (`_weigh`). The
stages meet in VMEM and never within one body, so that the compiler may place them side by side.

The compiler starts whatever has its operands, and keeps results until the matrix unit wants them, in registers that it
does not have. Where blocks say `ordered`, a head's weights and shrunk sums wait for numbers of the heads before and of
its own product: they are raised to a floor which lies below them anyway, and which of two floors it is depends on those
numbers, as far as the compiler can tell.
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
_NO_SUM = 1.2345e-33
_WAITED_FOR = 11 / 16
"""Share of a head's weights that the next head waits for."""
_FLOORS = (-3.2e38, -3.1e38)  # below EMPTY
_BOTH_LAST = (((1,), (1,)), ((), ()))
_AS_MATRICES = (((1,), (0,)), ((), ()))


def start(plan: PrefillPlan, ref: dict[str, Any]) -> None:
    """Puts the rows of ones below the values; nothing writes there again."""
    if plan.blocks.matrix_sums:
        ones = jnp.ones((2, plan.kv_heads, SUBLANES, plan.blocks.keys), plan.dtype)
        ref["values"][:, :, plan.head_dim :] = ones


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
        waited: list[tuple[jax.Array, jax.Array]] = []
        for of_group in range(plan.kv_heads):
            kv_head = self.group * plan.heads // plan.groups + of_group
            key, value = self._keys_and_values(kv_head)
            for i in range(of_group * sharing, (of_group + 1) * sharing):
                product = self._add(i, ref["values"][0, of_group])
                waited.append(self._weigh(i, self._floor(waited, product)))
                self._score(i, key)
            held = slice(0, plan.head_dim)
            ref["values"][0, of_group, held] = ref["values"][1, of_group, held]
            ref["values"][1, of_group, held] = self._turned(kv_head, value)

    def _add(self, i: int, value: jax.Array) -> jax.Array:
        """Returns the first rows of the product."""
        plan, ref, rows = self.plan, self.ref, (self.plan.value_rows, self.plan.blocks.queries)
        weights = ref["weights"][i]
        product = _dot(value, pltpu.bitcast(weights, plan.dtype) if plan.weight_words else weights, _AS_MATRICES)
        shrink = ref["shrink"][i]
        if plan.blocks.ordered:
            shrink = jnp.maximum(shrink, jnp.where(product[:SUBLANES] == _NO_SUM, -1.0, -2.0))
        before = jnp.where(self.added_first, 0.0, _by_sublanes(ref["sums"][self.added + i])) * shrink
        ref["sums"][self.added + i] = before.reshape(rows) + product
        return product[:SUBLANES]

    def _floor(self, waited: list[tuple[jax.Array, jax.Array]], product: jax.Array) -> jax.Array | None:
        """A number below all maxima that is there when a head's product is, and what was `waited` for."""
        if not waited or not self.plan.blocks.ordered:
            return None
        number = waited[-1][0]
        if len(waited) > 1:
            number = jnp.minimum(number, waited[-2][1])
        number = jnp.where(product == _NO_SUM, 0.0, number)
        return jnp.where(number < 0, _FLOORS[1], _FLOORS[0])

    def _weigh(self, i: int, floor: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns one of the later weights of each query, and what its sums shrink by."""
        plan, ref, at = self.plan, self.ref, self.weighed + i
        before, tops = jnp.where(self.weighed_first, EMPTY, ref["tops_so_far"][at]), ref["tops"][i]
        if floor is not None:
            before, tops = jnp.maximum(before, floor), jnp.maximum(tops, floor)
        top = jnp.maximum(jnp.maximum(before, LOWEST), jnp.max(tops, axis=0, keepdims=True))
        ref["tops_so_far"][at] = top
        shrink = jnp.exp2(before - top)
        ref["shrink"][i] = shrink
        weights = jnp.exp2(_by_sublanes(ref["scores"][i]) - top)
        if not plan.blocks.matrix_sums:
            held = jnp.where(self.weighed_first, 0.0, ref["weights_so_far"][at])
            ref["weights_so_far"][at] = held * shrink + jnp.sum(weights, axis=0)
        rounded = weights.reshape(plan.blocks.keys, plan.blocks.queries).astype(plan.dtype)
        ref["weights"][i] = pltpu.bitcast(rounded, jnp.int32) if plan.weight_words else rounded
        return weights[int(_WAITED_FOR * weights.shape[0])], shrink

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
        plan = self.plan
        lane = pl.multiple_of(plan.window_start(kv_head), LANES)
        pages = self.ref["kv"][self.kv_slot, :, :, pl.ds(lane, plan.window)]
        if pages.dtype != jnp.dtype(plan.dtype):
            pages = pages.astype(plan.dtype)
        flat = (plan.blocks.keys, plan.window)
        return pages[:, : plan.page].reshape(flat), pages[:, plan.page :].reshape(flat)

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


def _by_sublanes(x: jax.Array) -> jax.Array:
    return x.reshape(-1, SUBLANES, x.shape[-1])


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
