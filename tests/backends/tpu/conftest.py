"""What the tests of TPU kernels share: steps over pages full of NaN, and the reference's answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distaff.backends.base import AttentionSpec, RaggedIndex
from distaff.backends.reference import reference_ragged_attention
from distaff.backends.tpu.cache import num_lanes

LAYERS, LAYER = 2, 1


@dataclass(frozen=True)
class Heads:
    """N, K and H."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def unpacked(pages: Any, heads: Heads) -> np.ndarray:
    """A cache [L, P, 2 * page, lanes] as one of the reference, [L, P, page, 2, K, H], in fp32."""
    pages = np.asarray(jnp.asarray(pages).astype(jnp.float32))
    pages = pages[..., : heads.num_kv_heads * heads.head_dim]
    keys, values = np.split(pages, 2, axis=2)
    return np.stack([keys, values], axis=3).reshape(*keys.shape[:3], 2, heads.num_kv_heads, heads.head_dim)


@dataclass(frozen=True)
class Step:
    """Rows of (positions, new ones among them) over shuffled pages that hold what was before; all else is NaN.

    `pages` are in the cache's type, new keys and values have values that it can hold. 8-bit integers are 20 times
    normal numbers, and have no NaN.
    """

    heads: Heads
    rows: tuple[tuple[int, int], ...]
    table: np.ndarray
    q: jax.Array
    k: jax.Array
    v: jax.Array
    pages: jax.Array
    max_query_len: int | None

    @classmethod
    def drawn(
        cls,
        heads: Heads,
        rows: Sequence[tuple[int, int]],
        *,
        page: int,
        width: int,
        seed: int,
        dtype: str,
        kv_dtype: str,
        max_query_len: int | None,
        num_tokens: int,
    ) -> "Step":
        rng = np.random.default_rng(seed)
        table = rng.permutation(len(rows) * width + 2)[: len(rows) * width].reshape(len(rows), width)
        used = heads.num_kv_heads * heads.head_dim
        pages = np.zeros((LAYERS, table.size + 2, 2 * page, num_lanes(heads.num_kv_heads, heads.head_dim)), np.float32)
        pages[..., :used] = np.nan
        scale = 20 if kv_dtype == "int8" else 1
        for row, (length, new) in enumerate(rows):
            for position in range(length - new):
                lines = pages[LAYER, table[row, position // page]]
                for half in (0, 1):
                    lines[half * page + position % page, :used] = scale * rng.normal(size=used)
        if kv_dtype == "int8":
            pages = np.nan_to_num(pages, nan=111).round().clip(-127, 127)

        total = sum(new for _, new in rows)

        def normal(count: int, scale: float) -> np.ndarray:
            made = scale * rng.normal(size=(num_tokens, count, heads.head_dim)).astype(np.float32)
            made[total:] = np.nan
            return made

        q = normal(heads.num_heads, 1.0)
        k, v = (normal(heads.num_kv_heads, scale) for _ in "kv")
        if kv_dtype == "int8":
            k, v = k.round(), v.round()
        k, v = (jnp.asarray(x).astype(kv_dtype if kv_dtype != "int8" else dtype).astype(dtype) for x in (k, v))
        return cls(
            heads, tuple(rows), table.astype(np.int32), jnp.asarray(q, dtype), k, v,
            jnp.asarray(pages).astype(kv_dtype), max_query_len,
        )  # fmt: skip

    @property
    def index(self) -> RaggedIndex:
        starts = np.cumsum([0, *(new for _, new in self.rows)]).astype(np.int32)
        lens = np.asarray([length for length, _ in self.rows], np.int32)
        return RaggedIndex(jnp.asarray(self.table), jnp.asarray(starts), jnp.asarray(lens), self.max_query_len)

    @property
    def num_new(self) -> int:
        return sum(new for _, new in self.rows)

    @property
    def written(self) -> np.ndarray:
        """[L, P, page]: positions that hold keys and values after the step."""
        found = np.zeros((LAYERS, self.pages.shape[1], self.pages.shape[2] // 2), bool)
        for row, (length, _) in enumerate(self.rows):
            for position in range(length):
                found[LAYER, self.table[row, position // found.shape[2]], position % found.shape[2]] = True
        return found

    def wanted(self, spec: AttentionSpec, sinks: jax.Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The reference's output, and its cache, in fp32."""
        reference = _reference(replace(spec, scale=float(spec.scale)))
        q, k, v = (x.astype(jnp.float32) for x in (self.q, self.k, self.v))
        out, cache = reference(q, k, v, jnp.asarray(unpacked(self.pages, self.heads)), LAYER, self.index, sinks=sinks)
        return np.asarray(out), np.asarray(cache)


@cache
def _reference(spec: AttentionSpec) -> Any:
    return jax.jit(partial(reference_ragged_attention, spec=spec))
