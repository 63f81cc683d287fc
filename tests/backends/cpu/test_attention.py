"""The CPU's attention against the reference, in memory full of NaN; and that neighbours and chunks change no bit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec, CacheGroup, PyTree, RaggedIndex
from distaff.backends.cpu.attention import allocate_cpu_cache, check_cpu_attention, cpu_ragged_attention
from distaff.backends.cpu.attention_layout import PageLayout
from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend

REFERENCE = ReferenceBackend()
ROWS, TOKENS, LAYERS = 4, 288, 2


@dataclass(frozen=True)
class Case:
    """What one kernel and its programs are made for."""

    dtype: str
    kv_dtype: str
    num_kv_heads: int
    groups: int
    head_dim: int
    page: int
    spec: AttentionSpec
    sinks: bool = False

    @property
    def pages_per_row(self) -> int:
        return 320 // self.page

    @property
    def group(self) -> CacheGroup:
        return CacheGroup(LAYERS, self.num_kv_heads, self.head_dim, self.spec.window)


CASES = [
    Case("float32", "float32", 2, 3, 64, 32, AttentionSpec(0.125)),
    Case("float32", "float32", 1, 1, 5, 16, AttentionSpec(0.4, window=7, soft_cap=3.0), sinks=True),
    Case("float32", "float32", 1, 8, 20, 48, AttentionSpec(0.3, window=130)),
    Case("bfloat16", "bfloat16", 3, 3, 64, 16, AttentionSpec(0.125)),
    Case("bfloat16", "bfloat16", 1, 7, 80, 32, AttentionSpec(0.1, window=33), sinks=True),
    Case("bfloat16", "bfloat16", 2, 2, 9, 16, AttentionSpec(0.3, soft_cap=30.0)),
    Case("float32", "bfloat16", 1, 5, 96, 64, AttentionSpec(0.1), sinks=True),
    Case("bfloat16", "float32", 2, 1, 128, 16, AttentionSpec(0.1, window=1)),
    Case("bfloat16", "bfloat16", 1, 4, 256, 32, AttentionSpec(0.06)),
    Case("float32", "int8", 2, 3, 64, 32, AttentionSpec(0.125)),
    Case("bfloat16", "int8", 1, 7, 80, 16, AttentionSpec(0.1, window=33), sinks=True),
    Case("float32", "int8", 1, 1, 9, 48, AttentionSpec(0.3, soft_cap=30.0)),
]
MARKED = [
    pytest.param(case, id=str(case), marks=pytest.mark.slow if number in (2, 5, 6, 7, 8, 10, 11) else ())
    for number, case in enumerate(CASES)
]


def unpacked(packed: np.ndarray, layout: PageLayout) -> np.ndarray:
    """A cache of the CPU [L, P, K, elements] as one of the reference [L, P, page, 2, K, H];
    in fp32 if it has scales."""
    lead, page, pair, head_dim = packed.shape[:-1], layout.page, layout.pair, layout.head_dim
    keys, values, scales = np.split(packed, [layout.key_elements, layout.number_elements], axis=-1)
    keys = keys.reshape(*lead, -1, page, pair).swapaxes(-3, -2).reshape(*lead, page, -1)
    values = values.reshape(*lead, page // pair, -1, pair).swapaxes(-1, -2).reshape(*lead, page, -1)
    both = np.stack([keys[..., :head_dim], values[..., :head_dim]])
    if layout.scaled:
        each = np.ascontiguousarray(scales).view(np.float32).reshape(*lead, 2, page)
        both = both.astype(np.float32) * np.moveaxis(each, -2, 0)[..., None]
    return np.moveaxis(both, (0, 3, 4), (3, 4, 2))


def as_stored(x: np.ndarray, kv_dtype: str) -> np.ndarray:
    """Keys or values [T, K, H] as the cache has them, in fp32."""
    if kv_dtype != "int8":
        return x.astype(kv_dtype).astype(np.float32)
    wide = x.astype(np.float32)
    largest = np.abs(wide).max(axis=2, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.rint(wide * (np.float32(127) / largest)) * (largest / np.float32(127))


@dataclass(frozen=True)
class Step:
    """Rows of (positions before, new ones) over a page table, with fresh queries, keys and values."""

    table: np.ndarray
    rows: list[tuple[int, int]]
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @property
    def index(self) -> RaggedIndex:
        starts = np.cumsum([0, *(new for _, new in self.rows)])
        lens = [before + new if new else 0 for before, new in self.rows]
        return RaggedIndex(
            jnp.asarray(self.table, jnp.int32), jnp.asarray(starts, jnp.int32), jnp.asarray(lens, jnp.int32)
        )

    @property
    def num_tokens(self) -> int:
        return sum(new for _, new in self.rows)


def drawn(case: Case, rng: np.random.Generator, table: np.ndarray, rows: list[tuple[int, int]]) -> Step:
    """A step whose padding is NaN."""
    total = sum(new for _, new in rows)

    def normal(heads: int) -> np.ndarray:
        made = rng.normal(size=(TOKENS, heads, case.head_dim)).astype(case.dtype)
        made[total:] = np.nan
        return made

    return Step(table, rows, normal(case.num_kv_heads * case.groups), *(normal(case.num_kv_heads) for _ in "kv"))


Attend = Callable[..., tuple[jax.Array, jax.Array]]


@cache
def attend(case: Case) -> Attend:
    return jax.jit(partial(cpu_ragged_attention, spec=case.spec))


@cache
def attend_by_reference(case: Case) -> Attend:
    return jax.jit(partial(REFERENCE.ragged_attention, spec=case.spec))


def run(case: Case, step: Step, cache: jax.Array, sinks: np.ndarray | None) -> tuple[np.ndarray, jax.Array]:
    out, cache = attend(case)(step.q, step.k, step.v, cache, jnp.int32(1), step.index, sinks=sinks)
    return np.asarray(out), cache


def empty_cache(case: Case, num_pages: int) -> jax.Array:
    """Memory that was used before, for something else."""
    fresh = allocate_cpu_cache(case.group, num_pages=num_pages, page_size=case.page, dtype=case.kv_dtype)
    return jnp.full_like(fresh, -1 if case.kv_dtype == "int8" else jnp.nan)  # four bytes of -1 are a NaN, too


def sinks_of(case: Case, rng: np.random.Generator) -> np.ndarray | None:
    return rng.normal(size=case.num_kv_heads * case.groups).astype(np.float32) if case.sinks else None


@st.composite
def row_lengths(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Positions cached before and tokens new in each row: none, one, around lanes, pages and blocks; many in one."""
    few = [0, 1, 15, 16, 17, 33]
    rows = [(draw(st.sampled_from([0, 1, 31, 32, 45])), draw(st.sampled_from(few))) for _ in range(ROWS - 1)]
    rows.append((draw(st.sampled_from([0, 95, 127, 128, 129])), draw(st.sampled_from([0, 1, 2, 64, 93]))))
    return [(before if new else 0, new) for before, new in draw(st.permutations(rows))]


@pytest.mark.parametrize("case", MARKED)
@given(rows=row_lengths(), seed=st.integers(0, 2**16), shared_pages=st.integers(0, 8))
@settings(max_examples=8)
def test_attention_is_that_of_the_reference(
    case: Case, rows: list[tuple[int, int]], seed: int, shared_pages: int
) -> None:
    """Rows of any length over shuffled pages; the first pages of some are the first row's. Two steps, the first of
    which writes what the second finds."""
    rng = np.random.default_rng(seed)
    table = rng.permutation(ROWS * case.pages_per_row).reshape(ROWS, case.pages_per_row)
    shared = [min(before, rows[0][0], shared_pages * case.page) // case.page for before, _ in rows]
    for row in range(1, ROWS):
        table[row, : shared[row]] = table[0, : shared[row]]
    history = [(0 if row == 0 else shared[row] * case.page, 0) for row in range(ROWS)]
    history = [(start, before - start) for (start, _), (before, _) in zip(history, rows, strict=True)]

    sinks, exact = sinks_of(case, rng), replace(case, dtype="float32", kv_dtype="float32")
    packed = empty_cache(case, ROWS * case.pages_per_row)
    layout = PageLayout(case.head_dim, case.page, case.kv_dtype)
    plain = jnp.asarray(unpacked(np.asarray(packed), layout), jnp.float32)
    for lengths in (history, rows):
        step = drawn(case, rng, table, lengths)
        out, packed = run(case, step, packed, sinks)
        # In fp32, of keys and values as they are stored.
        wide = step.q.astype(np.float32), *(as_stored(x, case.kv_dtype) for x in (step.k, step.v))
        want, plain = attend_by_reference(exact)(*wide, plain, jnp.int32(1), step.index, sinks=sinks)
        error = 2.0**-8 if case.dtype == "bfloat16" else 0.0
        # Queries and weights that meet bytes have 16 bits, which is little beside what bfloat16 rounds.
        least = 2e-4 if (case.dtype, case.kv_dtype) == ("bfloat16", "int8") else 2e-5
        np.testing.assert_allclose(out.astype(np.float32), want, rtol=error, atol=least)
        np.testing.assert_array_equal(out[step.num_tokens :], 0)
    np.testing.assert_array_equal(unpacked(np.asarray(packed), layout).astype(np.float32), plain)


@pytest.mark.parametrize("case", MARKED)
@given(data=st.data())
@settings(max_examples=6)
def test_a_query_has_the_same_bits_in_any_batch(case: Case, data: st.DataObject) -> None:
    """A row computed in one chunk alone, then in chunks of any size among neighbours, elsewhere in memory."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    length = data.draw(st.sampled_from([1, 40, 129, 150]))
    num_pages = ROWS * case.pages_per_row
    sinks, table = sinks_of(case, rng), rng.permutation(num_pages).reshape(ROWS, case.pages_per_row)
    whole = drawn(case, rng, table, [(0, length)] + [(0, 0)] * (ROWS - 1))
    want, _ = run(case, whole, empty_cache(case, num_pages), sinks)

    cuts = sorted(data.draw(st.sets(st.integers(1, length), max_size=3)) | {length, max(0, length - 1)} - {0})
    cache, done = empty_cache(case, num_pages), 0
    table, place = rng.permutation(table.ravel()).reshape(table.shape), data.draw(st.integers(0, ROWS - 1))
    for cut in cuts:
        rows = [(0, data.draw(st.integers(0, 13))) for _ in range(ROWS)]
        rows[place] = done, cut - done
        step, start = drawn(case, rng, table, rows), sum(new for _, new in rows[:place])
        here = slice(start, start + cut - done)
        for array, source in ((step.q, whole.q), (step.k, whole.k), (step.v, whole.v)):
            array[here] = source[done:cut]
        out, cache = run(case, step, cache, sinks)
        assert out[here].tobytes() == want[done:cut].tobytes(), (done, cut)
        done = cut


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pages_behind_the_window_are_not_read(dtype: str) -> None:
    """The scheduler has freed them: their entries point to memory of others."""
    case, rng = Case(dtype, dtype, 1, 3, 64, 16, AttentionSpec(0.125, window=40)), np.random.default_rng(0)
    table = np.arange(ROWS * case.pages_per_row).reshape(ROWS, case.pages_per_row)
    before, new = 150, 5
    history = drawn(case, rng, table, [(0, before)] + [(0, 0)] * (ROWS - 1))
    _, cache = run(case, history, empty_cache(case, table.size), None)
    step = drawn(case, rng, table, [(before, new)] + [(0, 0)] * (ROWS - 1))
    want, _ = run(case, step, cache, None)
    freed = table.copy()
    freed[0, : (before - 40 + 1) // case.page] = -1
    got, _ = run(case, replace(step, table=freed), cache, None)
    assert np.isfinite(want).all() and got.tobytes() == want.tobytes()


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_a_token_that_fills_a_page_is_there_for_all_rows_of_the_step(kv_dtype: str) -> None:
    """Rows of one token each, the second of which begins with the page that the first one fills."""
    case, rng = Case("bfloat16", kv_dtype, 3, 3, 64, 16, AttentionSpec(0.125)), np.random.default_rng(0)
    table = np.arange(ROWS * case.pages_per_row).reshape(ROWS, case.pages_per_row)
    table[1, 0] = table[0, 0]
    alone = [(0, 0)] * (ROWS - 1)
    whole = drawn(case, rng, table, [(0, 17), *alone])
    want, _ = run(case, whole, empty_cache(case, table.size), None)

    begun = drawn(case, rng, table, [(0, 15), *alone])
    both = drawn(case, rng, table, [(15, 1), (16, 1), *alone[1:]])
    for ours, theirs in zip((begun.q, begun.k, begun.v), (whole.q, whole.k, whole.v), strict=True):
        ours[:15] = theirs[:15]
    for ours, theirs in zip((both.q, both.k, both.v), (whole.q, whole.k, whole.v), strict=True):
        ours[:2] = theirs[15:17]
    _, cache = run(case, begun, empty_cache(case, table.size), None)
    got, _ = run(case, both, cache, None)
    assert got[:2].tobytes() == want[15:17].tobytes()


def test_a_step_of_no_tokens_changes_nothing() -> None:
    case, rng = CASES[0], np.random.default_rng(0)
    step = drawn(case, rng, np.zeros((ROWS, case.pages_per_row), np.int32), [(0, 0)] * ROWS)
    out, cache = run(case, step, empty_cache(case, 2), None)
    np.testing.assert_array_equal(out, 0)
    assert np.isnan(cache).all()


def test_a_scan_over_layers_copies_no_cache() -> None:
    case, rng = CASES[3], np.random.default_rng(0)
    step = drawn(case, rng, np.zeros((ROWS, case.pages_per_row), np.int32), [(0, 1)] * ROWS)
    cache = allocate_cpu_cache(case.group, num_pages=5, page_size=case.page, dtype=case.kv_dtype)

    @partial(jax.jit, donate_argnums=0)
    def layers(cache: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, index: RaggedIndex) -> PyTree:
        def layer(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, cache = carry
            return cpu_ragged_attention(x, k, v, cache, i, index, case.spec), None

        return jax.lax.scan(layer, (q, cache), jnp.arange(LAYERS))[0]

    text = layers.lower(cache, step.q, step.k, step.v, step.index).compile().as_text() or ""
    shape = f"bf16[{','.join(map(str, cache.shape))}]"
    assert shape in text and "ragged_attention" in text
    assert not [line for line in text.splitlines() if shape in line and " copy(" in line]


def test_attention_is_one_named_equation_in_the_jaxpr() -> None:
    case, rng = CASES[0], np.random.default_rng(0)
    step = drawn(case, rng, np.zeros((ROWS, case.pages_per_row), np.int32), [(0, 1)] * ROWS)
    arguments = step.q, step.k, step.v, empty_cache(case, 1), jnp.int32(0), step.index
    jaxpr = jax.make_jaxpr(partial(cpu_ragged_attention, spec=case.spec))(*arguments)
    assert [str(equation.primitive) for equation in jaxpr.eqns].count("ragged_attention") == 1


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "page", "message"),
    [
        ("float16", "float32", 16, "dtype float16, supported are float32, bfloat16"),
        ("float32", "float16", 16, "kv dtype float16, supported are float32, bfloat16, int8"),
        ("float32", "float32", 24, "page size 24, expected a multiple of 16"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(dtype: str, kv_dtype: str, page: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        check_cpu_attention(dtype=dtype, kv_dtype=kv_dtype, page_size=page)
