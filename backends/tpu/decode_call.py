"""The static part of one call of the decode kernel, and the memory that it works in."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from .decode_copies import SLOTS
from .decode_items import FIELDS, RING
from .decode_shape import MXU, DecodeShape


@dataclass(frozen=True)
class DecodeCall:
    """The static part of a call.

    Args:
        sinks: whether there are any.
        lse: whether to return log-sum-exps, in a further 128 lanes of the output.
        emulate: the kernel is interpreted, and matrix units are imitated.
        token_scales: whether each token of the cache has scales of its own.
    """

    shape: DecodeShape
    window: int | None
    soft_cap: float | None
    sinks: bool
    lse: bool
    emulate: bool
    token_scales: bool = False

    @property
    def out_lanes(self) -> int:
        return self.shape.chunk_lanes + 128 * self.lse

    def scratch(self, num_rows: int) -> dict[str, Any]:
        shape = self.shape
        chunks, rows = shape.num_chunks, shape.rows
        raw = "bfloat16" if shape.by_hand else shape.matmul_dtype
        sems, numbers = pltpu.SemaphoreType.DMA, pltpu.VMEM((RING, chunks, rows, 1), jnp.float32)
        made = {
            "kv": pltpu.VMEM((SLOTS, shape.block_pages, 2 * shape.page, shape.lanes), shape.kv_dtype),
            "raw": pltpu.VMEM((SLOTS, chunks, shape.matmul_rows, shape.chunk_lanes), raw),
            "new": pltpu.VMEM((SLOTS, shape.max_queries, 2, shape.lanes), jnp.uint32),
            "out": pltpu.VMEM((2, chunks, rows, self.out_lanes), jnp.float32),
            "page_sems": sems((SLOTS,)),
            "raw_sems": sems((SLOTS,)),
            "new_sems": sems((SLOTS,)),
            "back_sems": sems((SLOTS,)),
            "out_sems": sems((2,)),
            "rows": pltpu.SMEM((num_rows,), jnp.int32),
            "ring": pltpu.SMEM((RING * FIELDS,), jnp.int32),
            "scores": pltpu.VMEM((2, chunks, rows, shape.block), jnp.float32),
            "weights": pltpu.VMEM((2, chunks, shape.matmul_rows, shape.block), shape.matmul_dtype),
            "products": pltpu.VMEM((chunks, rows, shape.chunk_lanes), jnp.float32),
            "sums": pltpu.VMEM((chunks, rows, shape.chunk_lanes), jnp.float32),
            "tops": numbers,
            "totals": numbers,
            "decays": numbers,
        }
        if self.token_scales:
            made["scales"] = pltpu.VMEM((SLOTS, shape.block_pages, 2, shape.page), jnp.float32)
            made["scale_sems"] = sems((SLOTS,))
        if shape.by_hand:
            made["columns"] = pltpu.VMEM((2, chunks, MXU, MXU), shape.matmul_dtype)
        return made
