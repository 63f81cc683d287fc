"""Attention over dense keys and values: a batch of equally long rows whose keys lie side by side."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import LANES
from .prefill_plan import SUBLANES, PrefillPlan
from .prefill_walk import Walk


@dataclass(frozen=True)
class DenseRows:
    """Rows of one length. Row b's queries are the tokens b * queries_apart ..., its keys the rows b * keys_apart ....

    Args:
        num_queries: T, and num_keys: S, without padding.
        keys, values: [B * keys_apart, lanes] in HBM; zeros where padded.
        query_segments: i32 [B, queries_apart + 1 tile] in HBM, and key_segments [B * keys_apart, LANES], lanes alike.
    """

    plan: PrefillPlan
    ref: dict[str, Any]
    num_rows: int
    num_queries: int
    num_keys: int
    queries_apart: int
    keys_apart: int
    keys: Any
    values: Any
    query_segments: Any | None = None
    key_segments: Any | None = None

    def queries(self, row: Any) -> tuple[Any, Any]:
        begin = row * self.queries_apart
        return begin, begin + self.num_queries

    def kv_len(self, row: Any) -> Any:
        return jnp.int32(self.num_keys)

    def ours(self, row: Any) -> Any:
        return jnp.bool_(True)

    def begin(self, row: Any) -> None:
        pass

    def _copies(self, row: Any, chunk: Any, slot: Any) -> list[Any]:
        rows = self.plan.blocks.keys
        at = pl.ds(pl.multiple_of(row * self.keys_apart + chunk * rows, SUBLANES), rows)
        here, arrived = self.ref["kv"].at[slot, 0], self.ref["kv_arrived"].at[slot]
        return [
            pltpu.make_async_copy(self.keys.at[at], here.at[pl.ds(0, rows)], arrived),
            pltpu.make_async_copy(self.values.at[at], here.at[pl.ds(rows, rows)], arrived),
        ]

    def fetch(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        for copy in self._copies(row, chunk, slot):
            copy.start()

    def arrive(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        for copy in self._copies(row, chunk, slot):
            copy.wait()

    def visible(self, row: Any, tile_start: Any, key: Any, query: Any) -> Any | None:
        """Same segment. Brought when needed: only batches with segments pay for it."""
        if self.query_segments is None or self.key_segments is None:
            return None
        blocks, ref = self.plan.blocks, self.ref
        chunk_start = pl.multiple_of(row * self.keys_apart + key[0, 0], SUBLANES)
        of_keys = self.key_segments.at[pl.ds(chunk_start, blocks.keys)]
        pltpu.sync_copy(of_keys, ref["key_segments"])
        tile = (tile_start - row * self.queries_apart) // blocks.queries
        pltpu.sync_copy(self.query_segments.at[row, tile], ref["query_segments"])
        of_queries = ref["query_segments"][:1]
        tall = jnp.concatenate([ref["key_segments"][...]] * (blocks.queries // LANES), axis=1)
        return tall == jnp.broadcast_to(of_queries, (blocks.keys, blocks.queries))


def segment_scratch(plan: PrefillPlan) -> dict[str, Any]:
    return {
        "key_segments": pltpu.VMEM((plan.blocks.keys, LANES), jnp.int32),
        "query_segments": pltpu.VMEM((SUBLANES, plan.blocks.queries), jnp.int32),
    }


def flash_kernel(
    *refs: Any, plan: PrefillPlan, num_rows: int, lengths: tuple[int, int], apart: tuple[int, int]
) -> None:
    """Operands q, k, v, [query and key segments], [sinks]; results out, [lse]; scratch."""
    q, k, v, *rest = refs
    segments = (rest.pop(0), rest.pop(0)) if plan.extra_mask else (None, None)
    sinks = rest.pop(0) if plan.sinks else None
    out = rest.pop(0)
    lse = rest.pop(0) if plan.return_lse else None
    (ref,) = rest
    rows = DenseRows(plan, ref, num_rows, *lengths, *apart, k, v, *segments)
    Walk(plan, ref, rows, q, out, lse, sinks).run()
