"""Prefill attention over pages against the reference, in memory full of NaN, interpreted."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import AttentionSpec, RaggedIndex
from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import reference_ragged_attention
from distaff.backends.tpu.cache import num_lanes
from distaff.backends.tpu.prefill import MOST_DECODE_QUERIES, check_prefill, prefill_attention
from distaff.backends.tpu.prefill_plan import PrefillBlocks

BLOCKS = PrefillBlocks(queries=128, keys=128, heads=4, buffers=2, matrix_sums=True, vmem_mib=100, whole=True)
VECTOR = PrefillBlocks(queries=128, keys=128, heads=4, buffers=3, matrix_sums=False, vmem_mib=100)
BOUNDS = {"float32": 1e-5, "bfloat16": 0.02}


@dataclass(frozen=True)
class Case:
    """Heads, memory, and rows as (positions before, new ones)."""

    heads: tuple[int, int, int]
    page: int
    rows: tuple[tuple[int, int], ...]
    blocks: PrefillBlocks = BLOCKS
    dtype: str = "float32"
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


CASES = [
    Case((4, 2, 128), 16, ((300, 150), (0, 260), (3, 3), (0, 0), (130, 17))),
    Case((6, 3, 64), 16, ((20, 30), (0, 5), (0, 40), (7, 1)), VECTOR, window=40, soft_cap=5.0, sinks=True),
    Case((3, 3, 80), 32, ((200, 150),), VECTOR, window=33),
    Case((5, 5, 96), 64, ((50, 30), (5, 100)), dtype="bfloat16"),
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case is CASES[1] else pytest.mark.slow) for case in CASES], ids=str
)
@pytest.mark.slow
def test_like_the_reference(case: Case) -> None:
    num_heads, num_kv_heads, head_dim = case.heads
    rng = np.random.default_rng(0)
    num_rows, page, width = len(case.rows), case.page, num_kv_heads * head_dim
    per_row = max(-(-sum(row) // page) for row in case.rows) + 1
    num_pages = num_rows * per_row + 1
    table = rng.permutation(num_pages)[: num_rows * per_row].reshape(num_rows, per_row).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum([new for _, new in case.rows])]).astype(np.int32)
    lens = np.array([before + new if new else 0 for before, new in case.rows], np.int32)
    tokens = int(starts[-1]) + 5

    def draw(count: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(tokens, count, head_dim)), case.dtype)

    q, k, v = draw(num_heads), draw(num_kv_heads), draw(num_kv_heads)
    theirs = np.full((2, num_pages, page, 2, num_kv_heads, head_dim), np.nan, np.float32)
    for row, (before, _) in enumerate(case.rows):
        for p in range(before):
            old = jnp.asarray(rng.normal(size=(2, num_kv_heads, head_dim)), case.dtype)
            theirs[1, table[row, p // page], p % page] = np.asarray(old, np.float32)

    def packed(cache: np.ndarray) -> np.ndarray:
        flat = np.moveaxis(cache, 3, 2).reshape(2, num_pages, 2 * page, width)
        return np.pad(flat, ((0, 0), (0, 0), (0, 0), (0, num_lanes(num_kv_heads, head_dim) - width)))

    index = RaggedIndex(jnp.asarray(table), jnp.asarray(starts), jnp.asarray(lens))
    spec = AttentionSpec(head_dim**-0.5, case.window, case.soft_cap)
    sinks = jnp.asarray(rng.normal(size=num_heads), jnp.float32) if case.sinks else None
    layer = jnp.int32(1)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        return prefill_attention(
            q, k, v, cache, layer, index, spec, sinks, generation="v6e", blocks=case.blocks, interpret=True
        )

    out, cache = run(q, k, v, jnp.asarray(packed(theirs), case.dtype))
    expected, written = reference_ragged_attention(q, k, v, jnp.asarray(theirs, case.dtype), layer, index, spec, sinks)
    ours = np.zeros(tokens, bool)
    for row, (before, new) in enumerate(case.rows):
        if new > MOST_DECODE_QUERIES:
            ours[starts[row] : starts[row + 1]] = True
            continue
        for p in range(before, before + new):  # the other kernel's
            written = written.at[1, table[row, p // page], p % page].set(jnp.nan)
    difference = np.abs(np.asarray(out, np.float32) - np.asarray(expected, np.float32))
    assert difference[ours].max() <= BOUNDS[case.dtype]
    assert not np.asarray(out)[~ours].any()
    np.testing.assert_array_equal(np.asarray(cache, np.float32), packed(np.asarray(written, np.float32)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("generation", "v3"), ("page_size", 24), ("kv_dtype", "float16"), ("head_dim", 100), ("num_kv_heads", 3)],
)
def test_unsupported(field: str, value: object) -> None:
    good: dict[str, Any] = dict(
        num_heads=4, num_kv_heads=2, head_dim=64, page_size=16, kv_dtype="bfloat16", generation="v6e"
    )
    check_prefill(**good)
    with pytest.raises(UnsupportedError, match=str(value)):
        check_prefill(**{**good, field: value})
