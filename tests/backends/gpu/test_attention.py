"""The GPU's kernels, interpreted, against the reference, in memory full of NaN."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _pytest.mark import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec, CacheGroup, RaggedIndex
from distaff.backends.gpu import decode, prefill
from distaff.backends.gpu.attention import gpu_ragged_attention
from distaff.backends.gpu.backend import GpuBackend
from distaff.backends.gpu.blocks import DecodeBlocks, PrefillBlocks
from distaff.backends.gpu.chips import chip_named
from distaff.backends.gpu.pages import allocate_gpu_cache
from distaff.backends.reference import reference_ragged_attention

LAYERS, LAYER, ROWS, TOKENS = 2, 1, 5, 104
# Programs are small and run a few times: LLVM's optimisations would take most of the time.
FAST_COMPILE = {"xla_backend_optimization_level": "0"}


@dataclass(frozen=True)
class Case:
    """What one program is made for. `cores` decide how many programs share a row's keys; small blocks make many."""

    num_kv_heads: int
    group: int
    head_dim: int
    page: int
    spec: AttentionSpec
    dtype: str = "float32"
    kv_dtype: str = "float32"
    sinks: bool = False
    max_query_len: int | None = None
    cores: int = 1
    rows: int = 32
    keys: int = 16

    @property
    def pages_per_row(self) -> int:
        return max(2, 128 // self.page)

    @property
    def num_pages(self) -> int:
        return ROWS * self.pages_per_row + 1

    @property
    def most_new(self) -> int:
        return self.max_query_len or 37


CASES = [
    # Widths that are one tile, two (96 = 64 + 32, 80 = 64 + 16), and less than one; groups of 1, 3, 7; every mask.
    Case(2, 3, 64, 16, AttentionSpec(0.125), sinks=True, cores=10),
    Case(1, 7, 80, 32, AttentionSpec(0.1, window=24, soft_cap=3.0), rows=16),
    Case(1, 3, 8, 256, AttentionSpec(0.3, window=50), sinks=True, cores=3),
    # Decode alone: with one query a row, and with the few of speculative decoding.
    Case(2, 2, 16, 16, AttentionSpec(0.3), sinks=True, max_query_len=1, cores=20),
    Case(1, 5, 16, 16, AttentionSpec(0.3, window=40), sinks=True, max_query_len=5, cores=9),
]
MORE_CASES = [
    Case(3, 1, 96, 64, AttentionSpec(0.1, soft_cap=20.0), rows=16, keys=32),
    Case(1, 4, 20, 16, AttentionSpec(0.3, window=1), sinks=True, cores=2),
    Case(1, 7, 12, 128, AttentionSpec(0.3, window=30), max_query_len=1),
]
BF16 = [
    Case(1, 3, 64, 16, AttentionSpec(0.125), "bfloat16", "bfloat16", sinks=True, cores=4),
    Case(1, 2, 16, 16, AttentionSpec(0.3), "float32", "bfloat16", max_query_len=1),
]
MORE_BF16 = [Case(2, 2, 192, 32, AttentionSpec(0.07, window=40), "bfloat16", "bfloat16")]
BOUND = {"float32": 1e-5, "bfloat16": 2.0**-7}
"""Largest difference from the reference in fp32 of keys and values as stored, relative to the largest value."""


@dataclass(frozen=True)
class Step:
    """Rows of (positions before, new ones) with all that one call takes, as NumPy arrays."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    cache: np.ndarray
    index: RaggedIndex
    num_tokens: int
    sinks: np.ndarray | None


def drawn(case: Case, rows: list[tuple[int, int]], rng: np.random.Generator) -> Step:
    """A step in memory that holds NaN wherever nothing was written: unused pages, positions, and padding."""
    total = sum(new for _, new in rows)

    def normal(*shape: int, dtype: str = case.dtype) -> np.ndarray:
        return rng.normal(size=shape).astype(jnp.dtype(dtype))

    group = CacheGroup(LAYERS, case.num_kv_heads, case.head_dim, case.spec.window)
    empty = allocate_gpu_cache(group, num_pages=case.num_pages, page_size=case.page, dtype=case.kv_dtype)
    cache = np.full(empty.shape, np.nan, empty.dtype)
    table = rng.permutation(case.num_pages)[: ROWS * case.pages_per_row].reshape(ROWS, -1)
    for row, (before, _) in enumerate(rows):
        for position in range(before):
            keys_values = normal(2, case.num_kv_heads, case.head_dim, dtype=case.kv_dtype)
            cache[LAYER, table[row, position // case.page], :, :, position % case.page] = keys_values
        if case.spec.window is not None and before:
            # The scheduler has freed what no query of the row sees: the entries point to memory of others.
            table[row, : max(0, before - case.spec.window + 1) // case.page] = -1
    heads = case.num_kv_heads * case.group
    q, k, v = (normal(TOKENS, n, case.head_dim) for n in (heads, case.num_kv_heads, case.num_kv_heads))
    for array in (q, k, v):
        array[total:] = np.nan
    index = RaggedIndex(
        jnp.asarray(table, jnp.int32),
        jnp.asarray(np.cumsum([0, *(new for _, new in rows)]), jnp.int32),
        jnp.asarray([before + new for before, new in rows], jnp.int32),
        case.max_query_len,
    )
    return Step(q, k, v, cache, index, total, normal(heads, dtype="float32") if case.sinks else None)


@cache
def kernels(case: Case) -> Callable[..., tuple[jax.Array, ...]]:
    """One program for a case, with its small blocks in place of the chip's."""
    chip = replace(chip_named("h100"), cores=case.cores)

    def run(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: jax.Array,
        layer: jax.Array,
        index: RaggedIndex,
        sinks: jax.Array | None,
    ) -> tuple[jax.Array, ...]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "decode_blocks", lambda *_, **__: DecodeBlocks(case.keys, 4, 2))
            patch.setattr(prefill, "prefill_blocks", lambda *_, **__: PrefillBlocks(case.rows, case.keys, 4, 2))
            return gpu_ragged_attention(
                q, k, v, cache, layer, index, case.spec, sinks, chip=chip, interpret=True, return_lse=True
            )

    return jax.jit(run, compiler_options=FAST_COMPILE)


@cache
def reference(case: Case) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return jax.jit(partial(reference_ragged_attention, spec=case.spec), compiler_options=FAST_COMPILE)


def check(case: Case, rows: list[tuple[int, int]], seed: int) -> None:
    step = drawn(case, rows, np.random.default_rng(seed))
    out, written, lse = kernels(case)(
        step.q, step.k, step.v, step.cache, jnp.int32(LAYER), index=step.index, sinks=step.sinks
    )
    # In fp32, of keys and values as they are stored.
    q, k, v = step.q.astype(np.float32), *(x.astype(step.cache.dtype).astype(np.float32) for x in (step.k, step.v))
    plain = np.moveaxis(step.cache.astype(np.float32), (2, 3, 4), (3, 4, 2))
    table = jnp.maximum(step.index.page_table, 0)  # the reference reads freed pages too, and masks them
    seen = plain if case.spec.window is None else np.nan_to_num(plain)
    index = replace(step.index, page_table=table)
    want, want_written = reference(case)(q, k, v, seen, jnp.int32(LAYER), index, sinks=step.sinks)

    atol = BOUND[case.dtype] * max(1.0, float(np.abs(want[: step.num_tokens]).max(initial=0.0)))
    np.testing.assert_allclose(np.asarray(out, np.float32), want, rtol=0, atol=atol)
    np.testing.assert_array_equal(out[step.num_tokens :], 0)
    assert np.isneginf(lse[step.num_tokens :]).all() and np.isfinite(lse[: step.num_tokens]).all()
    got = np.moveaxis(np.asarray(written, np.float32), (2, 3, 4), (3, 4, 2))
    np.testing.assert_array_equal(got if case.spec.window is None else np.nan_to_num(got), want_written)
    np.testing.assert_array_equal(np.isnan(got[1 - LAYER]), True)


def slow(case: Case) -> ParameterSet:
    return pytest.param(case, marks=pytest.mark.slow)


@st.composite
def row_lengths(draw: st.DrawFn, case: Case) -> list[tuple[int, int]]:
    """Positions cached before and tokens new in each row: none, one, around a page, several pages; some rows empty."""
    page, most = case.page, case.page * case.pages_per_row
    new_lens = st.sampled_from(sorted({0, 1, 2, 15, 16, 17, 31, case.most_new} & set(range(case.most_new + 1))))
    rows: list[tuple[int, int]] = []
    room = TOKENS
    for _ in range(ROWS):
        new = min(draw(new_lens), room)
        room -= new
        before = draw(st.sampled_from(sorted({0, 1, 15, 16, 17, page - 1, page, page + 1, 90})))
        rows.append((min(before, most - new) if new else 0, new))
    return rows


@pytest.mark.parametrize("case", [CASES[2], CASES[4], *map(slow, [*CASES[:2], CASES[3], *MORE_CASES])], ids=str)
@given(data=st.data())
@settings(max_examples=12)
def test_attention_is_that_of_the_reference(case: Case, data: st.DataObject) -> None:
    check(case, data.draw(row_lengths(case)), data.draw(st.integers(0, 2**16)))


@pytest.mark.parametrize("case", [*BF16, *map(slow, MORE_BF16)], ids=str)
@given(data=st.data())
@settings(max_examples=8)
def test_bfloat16_stays_within_its_bound(case: Case, data: st.DataObject) -> None:
    check(case, data.draw(row_lengths(case)), data.draw(st.integers(0, 2**16)))


def test_a_step_of_no_tokens_writes_nothing() -> None:
    check(CASES[0], [(0, 0)] * ROWS, 0)


def test_the_log_sum_of_exponentials_is_of_all_that_a_query_sees() -> None:
    """With equal keys, every score is the same: the sum counts keys, and a sink."""
    case = replace(CASES[0], sinks=True)
    step = drawn(case, [(40, 1), (0, 20), (0, 0), (17, 3), (0, 0)], np.random.default_rng(0))
    zeros, cache = np.zeros_like(step.k), np.zeros_like(step.cache)
    sinks = np.full(case.num_kv_heads * case.group, np.log(2.0), np.float32)
    *_, lse = kernels(case)(step.q, zeros, zeros, cache, jnp.int32(LAYER), index=step.index, sinks=sinks)
    counts = [41, *range(1, 21), 18, 19, 20]
    np.testing.assert_allclose(np.exp(lse[:24]), np.asarray(counts)[:, None] + np.full((24, 6), 2.0), rtol=1e-5)


def test_splits_fill_the_cores_but_are_no_more_than_blocks_of_keys() -> None:
    chip = replace(chip_named("h100"), cores=132)
    assert decode.num_splits(chip, programs=8, blocks=64) == 49
    assert decode.num_splits(chip, programs=8, blocks=5) == 5
    assert decode.num_splits(chip, programs=512, blocks=64) == 1


def test_attention_is_one_named_equation_in_the_jaxpr() -> None:
    case = CASES[0]
    step = drawn(case, [(0, 1)] * ROWS, np.random.default_rng(0))
    attend = partial(GpuBackend(interpret=True).ragged_attention, spec=case.spec)
    jaxpr = jax.make_jaxpr(attend)(step.q, step.k, step.v, step.cache, jnp.int32(0), step.index)
    assert [str(equation.primitive) for equation in jaxpr.eqns] == ["ragged_attention"]
