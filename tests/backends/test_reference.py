"""The reference backend against attention written with numpy loops, and its promises about memory it was not given."""

from typing import Any

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


@st.composite
def mixed_batches(draw: st.DrawFn) -> dict[str, Any]:
    page = draw(st.sampled_from([1, 3, 8]))
    lengths = st.sampled_from([0, 1, page - 1, page, page + 1, 2 * page + 1])
    rows = draw(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4))  # (cached before, new)
    return {
        "page": page,
        "rows": [(before if new else 0, new) for before, new in rows],
        "kv_heads": draw(st.integers(1, 3)),
        "groups": draw(st.integers(1, 3)),
        "head_dim": draw(st.sampled_from([2, 5, 8])),
        "spec": AttentionSpec(
            draw(st.sampled_from([1.0, 0.3])),
            draw(st.sampled_from([None, 1, 4])),
            draw(st.sampled_from([None, 2.0])),
        ),
        "sinks": draw(st.booleans()),
        "padding": draw(st.integers(0, 3)),
        "bound": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@given(mixed_batches())
@settings(max_examples=25, deadline=None)
def test_attention_matches_loops_over_ragged_rows_and_reads_nothing_unwritten(case: dict[str, Any]) -> None:
    """Rows of any length with shuffled pages; every page that no row owns holds NaN, and so does the padding."""
    rng = np.random.default_rng(case["seed"])
    page, rows, spec = case["page"], case["rows"], case["spec"]
    num_kv, head_dim = case["kv_heads"], case["head_dim"]
    num_heads = num_kv * case["groups"]
    pages_per_row = max(1, max(-(-(before + new) // page) for before, new in rows))
    num_pages = len(rows) * pages_per_row + 1
    table = rng.permutation(num_pages - 1).reshape(len(rows), pages_per_row) + 1

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    group = CacheGroup(num_layers=3, num_kv_heads=num_kv, head_dim=head_dim, window=spec.window)
    cache = np.full(
        BACKEND.allocate_cache(group, num_pages=num_pages, page_size=page, dtype=jnp.float32).shape, np.nan, np.float32
    )
    history = [(draw(before, num_kv, head_dim), draw(before, num_kv, head_dim)) for before, _ in rows]
    for row, (keys, values) in enumerate(history):
        for s in range(len(keys)):
            cache[1, table[row, s // page], s % page] = keys[s], values[s]

    total = sum(new for _, new in rows)
    num_tokens = total + case["padding"] or 1
    q, k, v = (
        draw(num_tokens, num_heads, head_dim),
        draw(num_tokens, num_kv, head_dim),
        draw(num_tokens, num_kv, head_dim),
    )
    q[total:], k[total:], v[total:] = np.nan, np.nan, np.nan
    sinks = draw(num_heads) if case["sinks"] else None
    index = RaggedIndex(
        jnp.asarray(table, jnp.int32),
        jnp.asarray(np.cumsum([0, *(new for _, new in rows)]), jnp.int32),
        jnp.asarray([before + new for before, new in rows], jnp.int32),
        max(1, max(new for _, new in rows)) if case["bound"] else None,
    )
    out, written = BACKEND.ragged_attention(
        jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(cache), jnp.int32(1), index, spec,
        None if sinks is None else jnp.asarray(sinks),
    )  # fmt: skip

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


def test_attention_is_one_named_equation_in_the_jaxpr() -> None:
    group = CacheGroup(num_layers=1, num_kv_heads=1, head_dim=2)
    cache = BACKEND.allocate_cache(group, num_pages=1, page_size=4, dtype=jnp.float32)
    index = RaggedIndex(jnp.zeros((1, 1), jnp.int32), jnp.array([0, 2]), jnp.array([2]))
    q, k = jnp.ones((2, 2, 2)), jnp.ones((2, 1, 2))
    jaxpr = jax.make_jaxpr(lambda: BACKEND.ragged_attention(q, k, k, cache, jnp.int32(0), index, AttentionSpec(1.0)))()
    assert [str(equation.primitive) for equation in jaxpr.eqns].count("ragged_attention") == 1


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
    with pytest.raises(UnsupportedError, match="kv dtype int8, supported are float32, bfloat16, float16"):
        BACKEND.check([group], dtype=jnp.dtype("float32"), kv_dtype=jnp.dtype("int8"), page_size=16)


def test_memory_is_that_of_a_real_machine() -> None:
    memory = BACKEND.memory()
    assert 0 < memory.free <= memory.total


@pytest.mark.parametrize("limit", [1, 16, 17, 500])
def test_buckets_ascend_and_reach_the_limit(limit: int) -> None:
    buckets = BACKEND.buckets(limit)
    assert list(buckets) == sorted(set(buckets)) and buckets[-1] >= limit > (buckets[-2] if len(buckets) > 1 else 0)
