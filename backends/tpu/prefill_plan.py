"""The static shape of an attention kernel with many queries: what a tile, a chunk and a body are."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from ..base import AttentionSpec
from ..errors import UnsupportedError
from .block_sizes import block_sizes
from .cache import LANES, num_lanes

GENERATIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")

MASKED = -2e38
"""Score of a key that a query does not see; below it nothing can come."""
LOWEST = -1e38
"""Least running maximum: above MASKED, so that exp2(MASKED - LOWEST) is 0 even where nothing is visible."""
EMPTY = -3e38
"""Maximum of no scores: exp2(EMPTY - LOWEST) is 0, and sums that it shrinks vanish."""
SUBLANES = 8
TILE_ALIGNMENT = 16
"""Tokens in memory: tiles begin at multiples of the rows that share a tile of memory."""


class Cursor(IntEnum):
    """Scalars that the walk keeps in memory: how far fetching is, how far results are, and what the bias holds."""

    FETCH_ROW = 0
    FETCH_TILE = 1
    FETCH_CHUNK = 2
    FETCH_END = 3
    FETCH_FIRST = 4
    DONE_ROW = 5
    DONE_TILE = 6
    DONE = 7
    BIASED = 8
    FETCH_SLOT = 9


@dataclass(frozen=True)
class PrefillBlocks:
    """What is tuned per generation.

    Args:
        queries: query positions of a tile, a multiple of 128.
        keys: key positions of a chunk, a multiple of every page size.
        heads: most query heads that one run of the inner body works on.
        buffers: chunks of keys and values in VMEM at once; all but one are being fetched.
        matrix_sums: whether the matrix unit adds up the weights of a query (by rows of ones below the values), not the
            vector unit.
        vmem_mib: what the kernel may take of a core's VMEM.
        whole: whether a chunk's keys and values are laid in whole registers when it has come (prefill_step.lay), where
            tiles of memory hold half a register of one head.
        waiting: heads of a body, its first ones, each quarter of whose weights waits for the sum of those before it;
            where it is not 0, keys are read anew for each head. Both keep the vector unit from running ahead.
    """

    queries: int
    keys: int
    heads: int
    buffers: int
    matrix_sums: bool
    vmem_mib: int
    whole: bool = False
    waiting: int = 0

    @classmethod
    def of(cls, kernel: str, generation: str) -> "PrefillBlocks":
        sizes = block_sizes(kernel, generation)
        return cls(**{**sizes, **{name: bool(sizes[name]) for name in ("matrix_sums", "whole")}})


@dataclass(frozen=True)
class PrefillPlan:
    """One kernel's geometry.

    Queries are [tokens, N * window] and keys and values [positions, lanes], as in cache.py. A query head is laid into
    the `window` lanes, aligned to whole registers, that hold its KV head, with zeros beside it: so keys are multiplied
    as they lie in memory, whatever their head width.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page: int
    dtype: DTypeLike
    kv_dtype: DTypeLike
    spec: AttentionSpec
    blocks: PrefillBlocks
    causal: bool = True
    extra_mask: bool = False
    sinks: bool = False
    return_lse: bool = False
    token_scales: bool = False

    @property
    def groups(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def heads(self) -> int:
        """Query heads of a body: they divide the heads, and share KV heads evenly."""
        fits = (u for u in range(self.blocks.heads, 0, -1) if self.num_heads % u == 0)
        return next(u for u in fits if u % self.groups == 0 or self.groups % u == 0)

    @property
    def kv_heads(self) -> int:
        """KV heads of a body."""
        return max(1, self.heads // self.groups)

    @property
    def bodies(self) -> int:
        """Runs of the body that cover all heads."""
        return self.num_heads // self.heads

    @property
    def accumulators(self) -> int:
        """Sums of all heads, and of a spare group for pieces that are none."""
        return self.num_heads + self.heads

    @property
    def lanes(self) -> int:
        return num_lanes(self.num_kv_heads, self.head_dim)

    @property
    def window(self) -> int:
        """Lanes in which any head lies whole."""
        ends = (k * self.head_dim % LANES + self.head_dim for k in range(self.num_kv_heads))
        return min(-(-max(ends) // LANES) * LANES, self.lanes)

    def window_start(self, kv_head: Any) -> Any:
        """First lane of a KV head's window; of a number or of a traced scalar."""
        start = kv_head * self.head_dim // LANES * LANES
        last = self.lanes - self.window
        return min(start, last) if isinstance(kv_head, int) else jnp.minimum(start, last)

    @property
    def out_width(self) -> int:
        """Lanes of a head in the output."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def value_rows(self) -> int:
        """Rows of the transposed values, of ones included."""
        return self.head_dim + (SUBLANES if self.blocks.matrix_sums else 0)

    @property
    def whole(self) -> bool:
        """Whether a chunk is laid in whole registers when it has come: also where numbers meet their scales then."""
        return self.blocks.whole or self.token_scales

    @property
    def words(self) -> bool:
        """Whether keys and values in whole registers are kept as 32-bit words, each two rows of 16 bits."""
        return self.whole and jnp.dtype(self.dtype).itemsize == 2

    @property
    def columns_at_once(self) -> int:
        """Columns of 128 lanes that are laid in whole registers together: neighbours come in one.

        With scales to multiply by, one at a time, for the sake of the program's length.
        """
        return 1 if self.token_scales else math.gcd(self.lanes // LANES, 4)

    @property
    def pages(self) -> int:
        """Pages of a chunk."""
        return self.blocks.keys // self.page

    @property
    def scratch(self) -> dict[str, Any]:
        """VMEM and semaphores that the walk over tiles needs, by name."""
        vmem, fp32 = pltpu.VMEM, jnp.float32
        queries, keys, heads = self.blocks.queries, self.blocks.keys, self.heads
        accumulators = self.accumulators
        shapes = {
            "q": vmem((2, self.num_heads, queries, self.window), self.dtype),
            "kv": vmem((self.blocks.buffers, self.pages, 2 * self.page, self.lanes), self.kv_dtype),
            "scores": vmem((heads, keys, queries), fp32),
            "tops": vmem((heads, SUBLANES, queries), fp32),
            "weights": vmem((heads, keys, queries), self.dtype),
            "shrink": vmem((heads, SUBLANES, queries), fp32),
            "values": self._rows_of((2, self.kv_heads), self.value_rows, keys),
            "bias": vmem((keys, queries), fp32),
            "sums": vmem((accumulators, self.value_rows, queries), fp32),
            "tops_so_far": vmem((2 * accumulators, SUBLANES, queries), fp32),
            "out": vmem((self.num_heads, queries, self.out_width), self.dtype),
            "neighbours": vmem((heads, TILE_ALIGNMENT, self.out_width), self.dtype),
            "cursor": pltpu.SMEM((len(Cursor),), jnp.int32),
            "q_arrived": pltpu.SemaphoreType.DMA((2,)),
            "neighbours_arrived": pltpu.SemaphoreType.DMA(()),
            "kv_arrived": pltpu.SemaphoreType.DMA((self.blocks.buffers,)),
            "out_left": pltpu.SemaphoreType.DMA((self.bodies,)),
        }
        if not self.blocks.matrix_sums:
            shapes["weights_so_far"] = vmem((2 * accumulators, SUBLANES, queries), fp32)
        if self.token_scales:
            shapes["scales"] = vmem((self.blocks.buffers, self.pages, 2, self.page), fp32)
            shapes["of_keys"], shapes["of_values"] = vmem((keys, LANES), fp32), vmem((keys, LANES), fp32)
            shapes["scales_arrived"] = pltpu.SemaphoreType.DMA((self.blocks.buffers,))
        if self.whole:
            shapes["whole"] = self._rows_of((2, self.lanes // LANES), keys, LANES)
        if self.head_dim % LANES:
            shapes["turned"] = vmem((self.window, keys), self.dtype)
        if self.return_lse:
            shapes["lse"] = vmem((self.num_heads, queries), fp32)
            shapes["lse_left"] = pltpu.SemaphoreType.DMA(())
        return shapes

    def _rows_of(self, lead: tuple[int, ...], rows: int, lanes: int) -> Any:
        """Memory for rows of numbers, or of their words."""
        dtype = jnp.int32 if self.words else self.dtype
        return pltpu.VMEM((*lead, rows // 2 if self.words else rows, lanes), dtype)


def fitted(plan: PrefillPlan, more: Callable[[PrefillPlan], Mapping[str, Any]] = lambda _: {}) -> PrefillPlan:
    """The plan with sizes halved until its scratch, and `more` scratch, takes at most 85 % of the VMEM it may take.

    Raises:
        UnsupportedError: it takes more even then.
    """
    smallest = max(LANES, plan.page)
    while vmem_bytes(plan.scratch | dict(more(plan))) > 0.85 * plan.blocks.vmem_mib * 2**20:
        blocks = plan.blocks
        if blocks.buffers > 2:
            blocks = replace(blocks, buffers=2)
        elif blocks.queries > LANES:
            blocks = replace(blocks, queries=blocks.queries // 2)
        elif blocks.keys > smallest:
            blocks = replace(blocks, keys=blocks.keys // 2)
        elif blocks.heads > 1:
            blocks = replace(blocks, heads=blocks.heads // 2)
        else:
            raise UnsupportedError(
                f"TPU prefill attention: {plan.num_heads} query heads and rows of {plan.lanes} lanes, supported is "
                f"what fits {blocks.vmem_mib} MiB of VMEM: fewer heads"
            )
        plan = replace(plan, blocks=blocks)
    return plan


def vmem_bytes(scratch: Mapping[str, Any]) -> int:
    """What scratch takes of VMEM, in whole tiles."""
    total = 0
    for ref in scratch.values():
        if ref.memory_space == pltpu.VMEM:
            *lead, rows, lanes = ref.shape
            total += math.prod(lead) * max(rows, SUBLANES) * -(-lanes // LANES) * LANES * jnp.dtype(ref.dtype).itemsize
    return total
