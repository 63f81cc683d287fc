"""How one decode call is cut up: what its kernel is compiled for.

Query heads are handled in chunks. A chunk is the fewest kv heads whose lanes fill whole vector registers, and the
lanes that the matrix unit contracts at once if there are enough heads: two heads of 128 on the 256 x 256 units, one on
the 128 x 128 units, eight heads of 80. Its queries stand in a block-diagonal matrix: each in the lanes of its own kv
head, zero in those of the chunk's other heads, so that heads need no padding.
"""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.typing import DTypeLike

from .cache import LANES, num_lanes

_MXU_LANES = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}
_EIGHT_BIT_MXU = {"v5e": "int8", "v5p": "int8", "v6e": "int8", "tpu7x": "float8_e4m3fn"}
_MIXED_MXU = {"v5e": "float8_e4m3fn", "v5p": "float8_e4m3fn", "v6e": "float8_e4m3fn"}
GENERATIONS = tuple(_MXU_LANES)
MXU = 256
"""Rows and columns of the matrix units that can be driven by hand (tpu7x)."""

_INT8_STEP = 128
"""An 8-bit integer pair means high * 128 + low."""


@dataclass(frozen=True)
class DecodeShape:
    """Everything static about one call.

    Args:
        num_heads, num_kv_heads, head_dim: N, K, H.
        page: positions in a page.
        block: positions in a step of the loop; a multiple of `page`.
        max_queries: the most queries of one row, Q.
        kv_dtype: of the cache.
        generation: of the TPU.
        over: rows of which no more positions than this are seen are left to others.
        most: and so are rows of which more than this are; None: as many as there are.
        short: positions of a step for the rows that are left out for being short; 0: none are.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page: int
    block: int
    max_queries: int
    kv_dtype: str
    generation: str
    over: int = 0
    most: int | None = None
    short: int = 0

    @property
    def groups(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def lanes(self) -> int:
        return num_lanes(self.num_kv_heads, self.head_dim)

    @property
    def block_pages(self) -> int:
        return self.block // self.page

    @property
    def passes(self) -> tuple["DecodeShape", ...]:
        """What the kernel runs one after the other: of long rows, then of those too short for their blocks."""
        if not self.short:
            return (self,)
        long = replace(self, over=self.short, short=0)
        return long, replace(self, block=self.short, most=self.short, short=0)

    @property
    def chunk_heads(self) -> int:
        """kv heads of a chunk."""
        aligned = LANES // math.gcd(self.head_dim, LANES)
        return min(aligned * max(1, _MXU_LANES[self.generation] // (aligned * self.head_dim)), self.num_kv_heads)

    @property
    def num_chunks(self) -> int:
        return -(-self.num_kv_heads // self.chunk_heads)

    @property
    def chunk_lanes(self) -> int:
        return num_lanes(self.chunk_heads, self.head_dim)

    def chunk_span(self, chunk: int) -> tuple[int, int]:
        """First lane and number of lanes; the last chunk may be narrower."""
        start = chunk * self.chunk_lanes
        return start, min(self.chunk_lanes, self.lanes - start)

    @property
    def token_rows(self) -> int:
        """Rows of one query in a chunk: its heads, rounded up to whole sublanes."""
        return -(-self.chunk_heads * self.groups // 8) * 8

    @property
    def rows(self) -> int:
        """Rows of all queries in a chunk, query-major."""
        return self.max_queries * self.token_rows

    @property
    def split(self) -> bool:
        """Whether queries and probabilities become pairs of 8-bit numbers, which meet 8-bit keys and values as they
        are."""
        return self.kv_dtype == _EIGHT_BIT_MXU.get(self.generation)

    @property
    def matmul_dtype(self) -> str:
        """What the matrix unit multiplies."""
        if self.kv_dtype == "float32" or self.split:
            return self.kv_dtype
        return "bfloat16"

    @property
    def widens(self) -> bool:
        """Whether keys and values are widened before the compiler's products, which else take 8 bits beside bf16."""
        return not self.split and self.kv_dtype not in (self.matmul_dtype, _MIXED_MXU.get(self.generation))

    @property
    def matmul_rows(self) -> int:
        """Rows of a chunk's queries as the matrix unit takes them: high parts, low parts, padding to a tile."""
        tile = 32 // jnp.dtype(self.matmul_dtype).itemsize
        return -(-(1 + self.split) * self.rows // tile) * tile

    @property
    def accumulator_dtype(self) -> DTypeLike:
        return jnp.int32 if self.matmul_dtype == "int8" else jnp.float32

    @property
    def low_weight(self) -> float:
        """What a high part weighs, when a low part weighs one."""
        return float(_INT8_STEP) if self.matmul_dtype == "int8" else 1.0

    @property
    def full_scale(self) -> float:
        """The magnitude that the largest number is scaled to before it is split."""
        return {"int8": 127.0 * _INT8_STEP, "float8_e4m3fn": 256.0}[self.matmul_dtype] if self.split else 1.0

    @property
    def chunk_columns(self) -> int:
        """Columns of a chunk's queries in a matrix unit driven by hand: whole tiles of bf16."""
        return -(-(1 + self.split) * self.rows // 16) * 16

    @property
    def by_hand(self) -> bool:
        """Whether the kernel drives the matrix units itself: on tpu7x, for chunks that are exactly as wide as they are.

        Keys then stream past the queries, which takes the units' other port than loading values does; the compiler
        adds the two instead of overlapping them.
        """
        return (
            self.generation == "tpu7x"
            and self.kv_dtype != "float32"
            and self.chunk_lanes == MXU
            and self.lanes % MXU == 0
            and self.block % (2 * MXU) == 0
            and self.num_chunks * self.chunk_columns <= LANES
        )

    @property
    def copies_at_once(self) -> bool:
        """Whether a block's pages are asked for before its turn, not between the turn's products.

        Starting a copy between products costs no cycles of its own, but holds stores back. For few and large pages of
        a tpu7x that costs more than it saves: 0.60 and not 0.57 of the HBM time of rows of 1024 in bf16.
        """
        return self.generation == "tpu7x" and self.kv_dtype == "bfloat16" and self.page >= 128
