"""The reference backend against attention written with numpy loops, and its promises about memory it was not given."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec, CacheGroup, RaggedIndex
from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend

BACKEND = ReferenceBackend()


def attend_by_loops(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, spec: AttentionSpec, sinks: np.ndarray | None
) -> np.ndarray:
    """One query [N, H] over keys and values [S, K, H] of its row, in float64."""
    out = np.zeros_like(q, np.float64)
    groups = q.shape[0] // keys.shape[1]
    for n in range(q.shape[0]):
        first = 0 if spec.window is None else max(0, position - spec.window + 1)
        scores = np.array([q[n] @ keys[s, n // groups] * spec.scale for s in range(first, position + 1)], np.float64)
        if spec.soft_cap is not None:
            scores = spec.soft_cap * np.tanh(scores / spec.soft_cap)
        top = max(scores.max(), -np.inf if sinks is None else sinks[n])
        weights = np.exp(scores - top)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[n] - top))
        for s, weight in enumerate(weights):
            out[n] += weight / total * values[first + s, n // groups]
    return out


@dataclass(frozen=True)
class Case:
    """What one compiled program is made for; lengths, page tables and contents vary."""

    page: int
    num_kv_heads: int
    groups: int
    head_dim: int
    spec: AttentionSpec
    sinks: bool = False
    bounded: bool = False


CASES = [
    Case(8, 1, 1, 8, AttentionSpec(1.0)),
    Case(3, 2, 3, 5, AttentionSpec(0.3, window=4), bounded=True),
    Case(1, 3, 2, 2, AttentionSpec(1.0, soft_cap=2.0), sinks=True),
    Case(8, 2, 1, 8, AttentionSpec(0.3, window=1), sinks=True),
    Case(3, 1, 7, 5, AttentionSpec(1.0, window=4, soft_cap=2.0), sinks=True, bounded=True),
]
ROWS, TOKENS, PAGES_PER_ROW = 4, 40, 12


@st.composite
def row_lengths(draw: st.DrawFn, page: int) -> list[tuple[int, int]]:
    """Positions cached before and tokens new in each row: none, one, around a page, several pages; some rows empty."""
    most = min(page * PAGES_PER_ROW // 2, TOKENS // ROWS)
    length = st.sampled_from(sorted({0, 1, page - 1, page, page + 1, most} & set(range(most + 1))))
    rows = [(draw(length), draw(length)) for _ in range(ROWS)]
    return [(before if new else 0, new) for before, new in rows]


@pytest.mark.parametrize("case", CASES, ids=str)
@given(data=st.data())
@settings(max_examples=20)
def test_attention_matches_loops_over_ragged_rows_and_reads_nothing_unwritten(case: Case, data: st.DataObject) -> None:
    """Rows of any length with shuffled pages; every page that no row owns holds NaN, and so does the padding."""
    rows = data.draw(row_lengths(case.page))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    num_kv, head_dim, page, spec = case.num_kv_heads, case.head_dim, case.page, case.spec
    num_heads, num_pages = num_kv * case.groups, ROWS * PAGES_PER_ROW + 1
    table = rng.permutation(num_pages - 1).reshape(ROWS, PAGES_PER_ROW) + 1

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    group = CacheGroup(num_layers=3, num_kv_heads=num_kv, head_dim=head_dim, window=spec.window)
    empty = BACKEND.allocate_cache(group, num_pages=num_pages, page_size=page, dtype=jnp.float32)
    cache = np.full(empty.shape, np.nan, np.float32)
    history = [(draw(before, num_kv, head_dim), draw(before, num_kv, head_dim)) for before, _ in rows]
    for row, (keys, values) in enumerate(history):
        for s in range(len(keys)):
            cache[1, table[row, s // page], s % page] = keys[s], values[s]

    total = sum(new for _, new in rows)
    q, k, v = (draw(TOKENS, heads, head_dim) for heads in (num_heads, num_kv, num_kv))
    q[total:], k[total:], v[total:] = np.nan, np.nan, np.nan
    sinks = draw(num_heads) if case.sinks else None
    index = RaggedIndex(
        jnp.asarray(table, jnp.int32),
        jnp.asarray(np.cumsum([0, *(new for _, new in rows)]), jnp.int32),
        jnp.asarray([before + new for before, new in rows], jnp.int32),
        TOKENS // ROWS if case.bounded else None,
    )
    arrays = (jnp.asarray(array) for array in (q, k, v, cache))
    out, written = _attend(*arrays, jnp.int32(1), index, spec, None if sinks is None else jnp.asarray(sinks))

    expected, token = cache.copy(), 0
    for row, (before, new) in enumerate(rows):
        keys = np.concatenate([history[row][0], k[token : token + new]])
        values = np.concatenate([history[row][1], v[token : token + new]])
        for offset in range(new):
            position = before + offset
            expected[1, table[row, position // page], position % page] = keys[position], values[position]
            want = attend_by_loops(q[token + offset], keys, values, position, spec, sinks)
            np.testing.assert_allclose(out[token + offset], want, atol=1e-5)
        token += new
    np.testing.assert_array_equal(written, expected)
    np.testing.assert_array_equal(out[total:], 0)


_attend = jax.jit(BACKEND.ragged_attention, static_argnames=("spec",))


def test_attention_is_one_named_equation_in_the_jaxpr() -> None:
    group = CacheGroup(num_layers=1, num_kv_heads=1, head_dim=2)
    cache = BACKEND.allocate_cache(group, num_pages=1, page_size=4, dtype=jnp.float32)
    index = RaggedIndex(jnp.zeros((1, 1), jnp.int32), jnp.array([0, 2]), jnp.array([2]))
    q, k = jnp.ones((2, 2, 2)), jnp.ones((2, 1, 2))
    jaxpr = jax.make_jaxpr(lambda: BACKEND.ragged_attention(q, k, k, cache, jnp.int32(0), index, AttentionSpec(1.0)))()
    assert [str(equation.primitive) for equation in jaxpr.eqns].count("ragged_attention") == 1


@pytest.mark.parametrize(
    ("equation", "x", "weight"),
    [("TD,NHD->TNH", (5, 7), (3, 2, 7)), ("TNH,DNH->TD", (5, 3, 2), (7, 3, 2)), ("TD,VD->TV", (1, 7), (11, 7))],
)
def test_linear_is_the_einsum_that_it_is_asked_for(equation: str, x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    values, weights = (rng.normal(size=shape).astype(np.float32) for shape in (x, weight))
    want = np.einsum(equation, values, weights)
    np.testing.assert_allclose(BACKEND.linear(jnp.asarray(values), jnp.asarray(weights), equation), want, atol=1e-5)
    half = jnp.asarray(values, jnp.bfloat16), jnp.asarray(weights, jnp.bfloat16)
    assert BACKEND.linear(*half, equation).dtype == jnp.bfloat16
    assert BACKEND.linear(*half, equation, out_dtype=jnp.float32).dtype == jnp.float32


def test_grouped_linear_multiplies_each_group_by_its_matrix() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(4, 3, 5)).astype(np.float32)
    sizes = [3, 0, 4, 0]
    expert = np.repeat(np.arange(4), sizes)
    got = BACKEND.grouped_linear(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(sizes, jnp.int32))
    np.testing.assert_allclose(got, np.einsum("ri,roi->ro", x, weight[expert]), atol=1e-5)


def test_layer_loop_hands_out_layers_in_order() -> None:
    stacked = {"w": jnp.arange(5.0)}
    got = BACKEND.layer_loop(lambda carry, layer, i: carry * 2 + layer["w"] + i, jnp.float32(1), stacked, 5)
    want = 1.0
    for i in range(5):
        want = want * 2 + i + i
    assert float(got) == want


def test_a_dtype_without_kernels_is_refused_by_name() -> None:
    group = CacheGroup(num_layers=1, num_kv_heads=1, head_dim=2)
    with pytest.raises(UnsupportedError, match="kv dtype int16, supported are float32, bfloat16, float16, int8"):
        BACKEND.check([group], dtype=jnp.dtype("float32"), kv_dtype=jnp.dtype("int16"), page_size=16)


def test_memory_is_that_of_a_real_machine() -> None:
    memory = BACKEND.memory()
    assert 0 < memory.free <= memory.total


@pytest.mark.parametrize("limit", [1, 16, 17, 500])
def test_buckets_ascend_and_reach_the_limit(limit: int) -> None:
    buckets = BACKEND.buckets(limit)
    assert list(buckets) == sorted(set(buckets)) and buckets[-1] >= limit > (buckets[-2] if len(buckets) > 1 else 0)
