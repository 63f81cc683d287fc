"""Prefill and flash attention on drawn lengths and segments, interpreted, against the reference and plain jax.numpy.

Pages are shuffled, and everything that was not written is NaN: pages, their last positions, padding tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec
from distaff.backends.tpu.flash import flash_attention
from distaff.backends.tpu.prefill import MOST_DECODE_QUERIES, prefill_attention
from distaff.backends.tpu.prefill_plan import PrefillBlocks

from .conftest import LAYER, Heads, Step, unpacked

ROWS, TOKENS, MOST = 4, 320, 300
BLOCKS = PrefillBlocks(queries=128, keys=128, heads=4, buffers=3, matrix_sums=True, vmem_mib=100, whole=True)
VECTOR = PrefillBlocks(queries=128, keys=128, heads=2, buffers=2, matrix_sums=False, vmem_mib=100, waiting=1)


@dataclass(frozen=True)
class Case:
    """A kernel's static choices, and how far its results may be from the reference's."""

    heads: Heads
    error: float = 1e-5
    dtype: str = "float32"
    kv_dtype: str = "float32"
    page: int = 16
    blocks: PrefillBlocks = BLOCKS
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False

    @property
    def spec(self) -> AttentionSpec:
        scale = self.heads.head_dim**-0.5
        return AttentionSpec(scale / 20 if self.kv_dtype == "int8" else scale, self.window, self.soft_cap)

    @property
    def unit(self) -> float:
        """Size of the values."""
        return 20.0 if self.kv_dtype == "int8" else 1.0

    def sink_values(self) -> jax.Array | None:
        return jnp.linspace(-1, 2, self.heads.num_heads) if self.sinks else None


QUICK = [
    Case(Heads(4, 2, 64)),
    Case(Heads(3, 3, 80), kv_dtype="float8_e4m3fn", page=32, blocks=VECTOR, window=40, soft_cap=4.0, sinks=True),
]
SLOW = [
    Case(Heads(4, 2, 64), kv_dtype="int8", sinks=True),
    Case(Heads(2, 1, 128), page=64, blocks=VECTOR),
    Case(Heads(7, 1, 96), window=1),
    Case(Heads(2, 2, 256), page=128, soft_cap=2.0),
    Case(Heads(4, 2, 64), 2e-2, "bfloat16", "bfloat16", window=130),
    Case(Heads(4, 4, 192), 2e-2, "bfloat16", "float8_e4m3fn", page=32, blocks=VECTOR),
    Case(Heads(4, 2, 128), 3e-2, "bfloat16", "int8", sinks=True),
]


@cache
def attend(case: Case) -> Callable[..., Any]:
    return jax.jit(
        partial(
            prefill_attention, spec=case.spec, generation="v6e", blocks=case.blocks, interpret=True, return_lse=True
        )
    )


@st.composite
def row_lengths(draw: st.DrawFn, page: int) -> list[tuple[int, int]]:
    """(positions, new ones): none, one, around a page and a chunk, many; all tokens fit."""
    lengths = [0, 1, page - 1, page, page + 1, 127, 128, 129, MOST]
    rows, left = [], TOKENS - 5
    for _ in range(ROWS):
        length = draw(st.sampled_from(lengths))
        new = min(length, left, draw(st.sampled_from([1, 9, page, page + 1, 130, MOST])))
        rows.append((length if new else 0, new))
        left -= new
    return rows


def agree(case: Case, rows: list[tuple[int, int]], seed: int) -> None:
    step = Step.drawn(
        case.heads, rows, page=case.page, width=-(-MOST // case.page), seed=seed, dtype=case.dtype,
        kv_dtype=case.kv_dtype, max_query_len=None, num_tokens=TOKENS,
    )  # fmt: skip
    sinks = case.sink_values()
    out, pages, lse = attend(case)(step.q, step.k, step.v, step.pages, jnp.int32(LAYER), step.index, sinks=sinks)
    out, stored = np.asarray(out.astype(jnp.float32)), unpacked(pages, case.heads)
    want, want_stored = step.wanted(case.spec, sinks)
    before = unpacked(step.pages, case.heads)
    ours = np.zeros(TOKENS, bool)
    begin = 0
    for row, (length, new) in enumerate(rows):
        if new > MOST_DECODE_QUERIES:
            ours[begin : begin + new] = True
            found, needed = (logits(case, step, row, begin, want_stored, sinks), np.asarray(lse)[begin : begin + new])
            assert np.abs(found - needed).max() <= 10 * case.error
            for position in range(length - new, length):
                at = (LAYER, step.table[row, position // case.page], position % case.page)
                before[at] = want_stored[at]
        begin += new
    assert np.abs(out - want)[ours].max(initial=0) <= case.error * case.unit
    assert not out[~ours].any() and np.isneginf(np.asarray(lse)[~ours]).all()
    np.testing.assert_array_equal(stored, before)


def logits(case: Case, step: Step, row: int, begin: int, stored: np.ndarray, sinks: jax.Array | None) -> np.ndarray:
    """Log-sum-exps of a row's scores [new, N], from all keys of the row."""
    length, new = step.rows[row]
    groups = case.heads.num_heads // case.heads.num_kv_heads
    keys = stored[LAYER, step.table[row]].reshape(-1, 2, *stored.shape[-2:])[:length, 0].repeat(groups, axis=1)
    queries = np.asarray(step.q[begin : begin + new].astype(jnp.float32), np.float64)
    scores = np.einsum("TNH,SNH->TNS", queries, keys.astype(np.float64)) * case.spec.scale
    if case.soft_cap is not None:
        scores = case.soft_cap * np.tanh(scores / case.soft_cap)
    query, key = np.arange(length - new, length)[:, None], np.arange(length)
    seen = (key <= query) & (key > query - (case.window or length))
    scores = np.where(seen[:, None], scores, -np.inf)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(np.asarray(sinks)[None, :, None], (*scores.shape[:2], 1))], -1)
    return np.log(np.exp(scores).sum(axis=-1))


@pytest.mark.parametrize("case", QUICK, ids=str)
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_prefill_is_the_references(case: Case, data: st.DataObject, seed: int) -> None:
    agree(case, data.draw(row_lengths(case.page)), seed)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=str)
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_prefill_is_the_references_with_every_mask_and_cache(case: Case, data: st.DataObject, seed: int) -> None:
    agree(case, data.draw(row_lengths(case.page)), seed)


@pytest.mark.soak
@pytest.mark.parametrize("case", [*QUICK, *SLOW], ids=str)
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_prefill_is_the_references_on_many_lengths(case: Case, data: st.DataObject, seed: int) -> None:
    agree(case, data.draw(row_lengths(case.page)), seed)


@cache
def flash(causal: bool, window: int | None, cap: float | None) -> Callable[..., Any]:
    spec = AttentionSpec(0.125, window, cap)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, numbers: jax.Array, sinks: jax.Array) -> Any:
        return flash_attention(
            q, k, v, spec, sinks, generation="v6e", blocks=VECTOR, causal=causal, return_lse=True, interpret=True,
            segments=(numbers[:, -q.shape[1] :], numbers),
        )  # fmt: skip

    return jax.jit(run)


def flash_agrees(causal: bool, window: int | None, cap: float | None, ends: list[int], seed: int) -> None:
    """Segments of drawn lengths, the last of which is padding: no query of another segment sees it."""
    rng = np.random.default_rng(seed)
    queries, keys = 150, 280
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, n, heads, 64)), jnp.float32) for n, heads in ((150, 2), (280, 1), (280, 1))
    )
    numbers = jnp.asarray(np.searchsorted(np.sort(ends), np.arange(keys), side="right")[None].repeat(2, 0), jnp.int32)
    sinks = jnp.asarray(rng.normal(size=2), jnp.float32)
    out, lse = flash(causal, window, cap)(q, k, v, numbers, sinks)
    scores = np.einsum("BTNH,BSH->BNTS", np.asarray(q, np.float64), np.asarray(k[:, :, 0], np.float64)) * 0.125
    if cap is not None:
        scores = cap * np.tanh(scores / cap)
    query, key = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    seen = np.ones((queries, keys), bool) if not causal else key <= query
    if window is not None:
        seen = seen & (key > query - window)
    seen = seen & np.asarray(numbers[:, -queries:, None] == numbers[:, None])[:, None]
    weights = np.where(seen, np.exp(scores), 0)
    total = weights.sum(axis=-1) + np.exp(np.asarray(sinks, np.float64))[:, None]
    want = np.einsum("BNTS,BSH->BTNH", weights / total[..., None], np.asarray(v[:, :, 0], np.float64))
    assert np.abs(out - want).max() <= 1e-5
    assert np.abs(lse - np.moveaxis(np.log(total), 1, 2)).max() <= 1e-5


@cache
def masked(window: int | None) -> Callable[..., Any]:
    spec = AttentionSpec(0.125, window)
    return jax.jit(partial(prefill_attention, spec=spec, generation="v6e", blocks=BLOCKS, interpret=True, limit=1))


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 100])
@given(seed=st.integers(0, 2**16))
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
def test_tokens_see_what_their_mask_says_of_the_new_ones_and_all_that_was_there(window: int | None, seed: int) -> None:
    """Drawn masks, later tokens among the seen; narrower than the longest row, whose last tokens nobody sees."""
    rng = np.random.default_rng(seed)
    rows = [
        (int(new + old), int(new)) for new, old in zip(rng.integers(2, 150, 2), rng.integers(0, 140, 2), strict=True)
    ]
    rows = [*rows, (30, 1), (0, 0)]
    heads = Heads(4, 2, 64)
    step = Step.drawn(
        heads, rows, page=16, width=-(-MOST // 16), seed=seed, dtype="float32", kv_dtype="float32",
        max_query_len=None, num_tokens=TOKENS,
    )  # fmt: skip
    mask = rng.random((TOKENS, 100)) < 0.5
    mask[:, 0] = True
    out, pages = masked(window)(
        step.q, step.k, step.v, step.pages, jnp.int32(LAYER), step.index, mask=jnp.asarray(mask)
    )
    stored, begin = unpacked(pages, heads), 0
    for row, (length, new) in enumerate(rows[:2]):
        keys, values = np.moveaxis(stored[LAYER, step.table[row]].reshape(-1, 2, 2, 64)[:length], 1, 0).repeat(2, 2)
        scores = np.einsum("TNH,SNH->NTS", np.asarray(step.q[begin : begin + new], np.float64), keys) * 0.125
        own = np.pad(mask[begin : begin + new], ((0, 0), (0, max(0, new - 100))))[:, :new]
        seen = np.concatenate([np.ones((new, length - new), bool), own], axis=1)
        if window is not None:
            seen &= np.arange(length) > np.arange(length - new, length)[:, None] - window
        weights = np.where(seen, np.exp(scores), 0)
        total = weights.sum(axis=-1, keepdims=True)
        want = np.einsum("NTS,SNH->TNH", weights / np.where(total > 0, total, 1), values)
        np.testing.assert_allclose(out[begin : begin + new], want, rtol=0, atol=1e-5)
        begin += new
    assert not np.asarray(out)[begin:].any()


MASKS = [(True, None, None), (True, 70, 3.0), (False, None, 5.0), (False, 33, None)]
ENDS = st.lists(st.sampled_from([0, 1, 127, 128, 129, 131, 200, 255, 256, 279, 280]), min_size=1, max_size=4)


@given(ends=ENDS, seed=st.integers(0, 2**16))
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_flash_is_plain_attention(ends: list[int], seed: int) -> None:
    flash_agrees(True, 70, 3.0, ends, seed)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS, ids=str)
@given(ends=ENDS, seed=st.integers(0, 2**16))
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_flash_is_plain_attention_with_every_mask(
    mask: tuple[bool, int | None, float | None], ends: list[int], seed: int
) -> None:
    flash_agrees(*mask, ends, seed)
