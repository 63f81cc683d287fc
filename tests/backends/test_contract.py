"""What every backend promises, asked of each: kernels of accelerators run interpreted."""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec, Backend, CacheGroup, RaggedIndex
from distaff.backends.cpu.backend import CpuBackend
from distaff.backends.errors import UnsupportedError
from distaff.backends.gpu.backend import GpuBackend
from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu.backend import TpuBackend
from distaff.models.kv_cache import read_pages, write_pages

OWN = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "examples" / "own_backend.py"))["OwnBackend"]
"""The worked example of docs/backends.md."""

BACKENDS: dict[str, Callable[[], Backend]] = {
    "reference": ReferenceBackend,
    "cpu": CpuBackend,
    "tpu": partial(TpuBackend, interpret=True, page_size=16),
    "gpu": partial(GpuBackend, interpret=True),
    "own": OWN,
}
ROWS, TOKENS, PAGE, PAGES_PER_ROW = 3, 24, 16, 3


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@dataclass(frozen=True)
class Case:
    num_kv_heads: int
    groups: int
    head_dim: int
    spec: AttentionSpec
    sinks: bool = False


CASES = (
    Case(2, 3, 16, AttentionSpec(0.3)),
    Case(1, 2, 80, AttentionSpec(0.1, window=5, soft_cap=3.0), sinks=True),
)
LATER = {("tpu", "grouped"), ("tpu", "window, cap, sinks"), ("gpu", "window, cap, sinks")}


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, case: Case, sinks: np.ndarray | None) -> np.ndarray:
    """Queries [T, N, H] of one row, the last of its positions, over keys and values [S, K, H]; in float64."""
    spec, out = case.spec, np.zeros(q.shape, np.float64)
    for t, n in np.ndindex(*q.shape[:2]):
        position = len(keys) - len(q) + t
        first = 0 if spec.window is None else max(0, position - spec.window + 1)
        seen = slice(first, position + 1)
        scores = keys[seen, n // case.groups].astype(np.float64) @ q[t, n] * spec.scale
        if spec.soft_cap is not None:
            scores = spec.soft_cap * np.tanh(scores / spec.soft_cap)
        weights = np.exp(scores)
        total = weights.sum() + (0 if sinks is None else np.exp(sinks[n]))
        out[t, n] = weights @ values[seen, n // case.groups] / total
    return out


@cache
def compiled(name: str, case: Case, bound: int | None) -> Callable[..., tuple[jax.Array, jax.Array]]:
    backend = BACKENDS[name]()

    def run(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: jax.Array, sinks: jax.Array, *index: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ragged = RaggedIndex(*index, max_query_len=bound)
        return backend.ragged_attention(q, k, v, cache, jnp.int32(1), ragged, case.spec, sinks if case.sinks else None)

    return jax.jit(run)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        # The kernels take long to interpret.
        pytest.param(name, case, id=f"{name}-{told}", marks=pytest.mark.slow if (name, told) in LATER else ())
        for name in BACKENDS
        for told, case in zip(("grouped", "window, cap, sinks"), CASES, strict=True)
    ],
)
@given(data=st.data())
@settings(max_examples=6, derandomize=True, database=None)
def test_three_calls_attend_as_loops_do(name: str, case: Case, data: st.DataObject) -> None:
    """A ragged prompt, a second piece of it, then a token for each row, over shuffled pages."""
    backend = BACKENDS[name]()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    lengths = st.lists(st.integers(0, TOKENS // ROWS), min_size=ROWS, max_size=ROWS)
    pieces = [data.draw(lengths), data.draw(lengths)]
    pieces.append([int(a + b > 0) for a, b in zip(*pieces, strict=True)])
    group = CacheGroup(2, case.num_kv_heads, case.head_dim, case.spec.window)
    backend.check([group], dtype=jnp.float32, kv_dtype=jnp.float32, page_size=PAGE)
    cache = backend.allocate_cache(group, num_pages=ROWS * PAGES_PER_ROW, page_size=PAGE, dtype=jnp.float32)
    table = jnp.asarray(rng.permutation(ROWS * PAGES_PER_ROW).reshape(ROWS, -1), jnp.int32)
    sinks = rng.normal(size=case.num_kv_heads * case.groups).astype(np.float32)
    keys, values = ([np.zeros((0, case.num_kv_heads, case.head_dim), np.float32)] * ROWS for _ in range(2))
    for number, piece in enumerate(pieces):
        num_tokens = ROWS if number == 2 else TOKENS
        k, v = (rng.normal(size=(num_tokens, *keys[0].shape[1:])).astype(np.float32) for _ in range(2))
        q = rng.normal(size=(num_tokens, len(sinks), case.head_dim)).astype(np.float32)
        starts = np.cumsum([0, *piece])
        for row in range(ROWS):
            mine = slice(starts[row], starts[row + 1])
            keys[row], values[row] = np.concatenate([keys[row], k[mine]]), np.concatenate([values[row], v[mine]])
        kv_lens = np.where(np.asarray(piece) > 0, [len(row) for row in keys], 0)
        run = compiled(name, case, 1 if number == 2 else None)
        index = (table, jnp.asarray(starts, jnp.int32), jnp.asarray(kv_lens, jnp.int32))
        out, cache = run(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), cache, jnp.asarray(sinks), *index)
        for row in range(ROWS):
            mine = slice(starts[row], starts[row + 1])
            if piece[row]:
                want = attend(q[mine], keys[row], values[row], case, sinks if case.sinks else None)
                np.testing.assert_allclose(out[mine], want, atol=1e-5)
        np.testing.assert_array_equal(out[starts[-1] :], 0)


def test_a_mask_says_which_new_tokens_are_seen_or_is_refused_by_name(backend: Backend) -> None:
    """A tree of four candidates behind two old positions, and a row of one token; the window's first key is gone."""
    old, page = 2, backend.page_size
    tree = np.asarray([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0]], bool)
    rng, spec = np.random.default_rng(0), AttentionSpec(0.3, window=5)
    q, k, v = (rng.normal(size=(5, heads, 16)).astype(np.float32) for heads in (6, 2, 2))
    before = [rng.normal(size=(old, 2, 16)).astype(np.float32) for _ in range(2)]
    table, group = jnp.asarray([[1], [0]], jnp.int32), CacheGroup(1, 2, 16, spec.window, 3)
    cache = backend.allocate_cache(group, num_pages=2, page_size=page, dtype=jnp.float32)

    def call(q: Any, k: Any, v: Any, cache: Any, starts: list[int], lens: list[int], mask: Any) -> Any:
        index = RaggedIndex(table, jnp.asarray(starts, jnp.int32), jnp.asarray(lens, jnp.int32), 4, mask)
        q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
        return backend.ragged_attention(q, k, v, cache, jnp.int32(0), index, spec)

    if not backend.capabilities.custom_masks:
        with pytest.raises(UnsupportedError, match=rf"backend {backend.name}: a custom mask in RaggedIndex.mask"):
            call(q, k, v, cache, [0, 4, 5], [old + 4, 1], jnp.asarray(tree))
        return
    _, cache = call(np.zeros((old, 6, 16), np.float32), before[0], before[1], cache, [0, old, old], [old, 0], None)
    out, _ = call(q, k, v, cache, [0, 4, 5], [old + 4, 1], jnp.asarray(tree))
    keys, values = (np.concatenate([x, y[:4]]) for x, y in zip(before, (k, v), strict=True))
    for t in range(4):
        at = [s for s in range(old + 4) if s > old + t - 5 and (s < old or tree[t, s - old])]
        want = attend(q[t : t + 1], keys[at], values[at], Case(2, 3, 16, AttentionSpec(0.3)), None)
        np.testing.assert_allclose(out[t : t + 1], want, atol=1e-5)
    np.testing.assert_allclose(out[4], v[4].repeat(3, axis=0), atol=1e-5)


def test_dense_attention_is_causal_and_ends_with_each_row(backend: Backend) -> None:
    case, rng, lengths = CASES[0], np.random.default_rng(0), [20, 7]
    q, k, v = (rng.normal(size=(2, 20, heads, 16)).astype(np.float32) for heads in (6, 2, 2))
    out = backend.dense_attention(
        jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), case.spec, lengths=jnp.asarray(lengths, jnp.int32)
    )
    for row, length in enumerate(lengths):
        want = attend(q[row, :length], k[row, :length], v[row, :length], case, None)
        np.testing.assert_allclose(out[row, :length], want, atol=1e-5)
        np.testing.assert_array_equal(out[row, length:], 0)


def test_linear_grouped_and_embed_are_plain_products(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    params = {
        "embedder": {"table": rng.normal(size=(37, 24)).astype(np.float32)},
        "segments": {
            "0": {
                "attention": {
                    name: {"weight": rng.normal(size=(2, heads, 8, 24)).astype(np.float32)}
                    for name, heads in (("q", 4), ("k", 2))
                },
                "mlp": {"experts": {"gate": rng.normal(size=(2, 3, 40, 24)).astype(np.float32)}},
            }
        },
    }
    x = rng.normal(size=(5, 24)).astype(np.float32)
    packed = backend.prepare_params(jax.tree.map(jnp.asarray, params))
    sizes, ids = jnp.asarray([2, 0, 3], jnp.int32), jnp.asarray([3, 36, 0, 3, 9], jnp.int32)

    def body(carry: jax.Array, layer: dict[str, Any], number: jax.Array) -> jax.Array:
        weights = [layer["attention"][name]["weight"] for name in ("q", "k")]
        q, k = backend.linears(jnp.asarray(x), weights, ["TD,NHD->TNH", "TD,KHD->TKH"])
        assert q.shape == (5, 4, 8) and k.shape == (5, 2, 8)
        y = backend.grouped_linear(jnp.asarray(x), layer["mlp"]["experts"]["gate"], sizes)
        return carry + (number + 1) * jnp.concatenate([q.reshape(5, -1), k.reshape(5, -1), y], axis=1)

    got = backend.layer_loop(body, jnp.zeros((5, 88)), packed["segments"]["0"], 2)
    want = 0.0
    for layer in range(2):
        attention = params["segments"]["0"]["attention"]
        q, k = (np.einsum("TD,NHD->TNH", x, attention[name]["weight"][layer]).reshape(5, -1) for name in ("q", "k"))
        experts = params["segments"]["0"]["mlp"]["experts"]["gate"][layer][[0, 0, 2, 2, 2]]
        want += (layer + 1) * np.concatenate([q, k, np.einsum("TD,TFD->TF", x, experts)], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    table = packed["embedder"]["table"]
    np.testing.assert_array_equal(backend.embed(table, ids), params["embedder"]["table"][np.asarray(ids)])
    np.testing.assert_allclose(backend.linear(jnp.asarray(x), table, "TD,VD->TV"),
                               x @ params["embedder"]["table"].T, atol=1e-4)  # fmt: skip


def test_a_norm_is_over_the_axes_of_its_scale(backend: Backend) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, 4, 8)).astype(np.float32)
    for letters, axes in (((8,), (2,)), ((4, 8), (1, 2))):
        scale = rng.normal(size=letters).astype(np.float32)
        got = backend.rms_norm(jnp.asarray(x), jnp.asarray(scale), offset=1.0, epsilon=1e-3)
        want = x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + 1e-3) * (scale + 1)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("angles", [4, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_are_rotated_in_halves(backend: Backend, dtype: str, angles: int) -> None:
    """What is behind the halves stays."""
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.normal(size=(5, num_heads, 8)), dtype) for num_heads in (4, 2))
    turns = rng.normal(size=(5, angles)).astype(np.float32)
    got = backend.rotate(q, k, jnp.cos(turns), jnp.sin(turns))
    for heads, found in zip((q, k), got, strict=True):
        want = np.asarray(heads, np.float64)
        pairs = want[..., :angles] + 1j * want[..., angles : 2 * angles]
        pairs *= np.exp(1j * turns)[:, None]
        want[..., : 2 * angles] = np.concatenate([pairs.real, pairs.imag], axis=-1)
        np.testing.assert_allclose(np.asarray(found, np.float64), want, atol=1e-6 if dtype == "float32" else 2e-2)


def test_pages_are_read_and_written_by_number(backend: Backend) -> None:
    group = CacheGroup(2, 2, 16)
    cache = backend.allocate_cache(group, num_pages=5, page_size=PAGE, dtype=jnp.float32)
    assert all(leaf.shape[:2] == (2, 5) for leaf in jax.tree.leaves(cache))
    marked = jax.tree.map(lambda leaf: leaf.at[:, 3].set(7), cache)
    moved = write_pages((cache,), [jnp.asarray([1])], read_pages((marked,), [jnp.asarray([3])]))
    for leaf in jax.tree.leaves(moved):
        assert (leaf[:, 1] == 7).all() and (leaf[:, 2:] == 0).all()


def test_a_program_consumes_what_is_donated(backend: Backend) -> None:
    given_ = backend.put(np.ones((64, 64), np.float32))
    program = backend.compile(lambda x, y: x + y, (given_, given_), donate=(0,))
    first = backend.put(np.ones((64, 64), np.float32))
    np.testing.assert_array_equal(backend.get(program(first, given_)), 2.0)
    assert first.is_deleted() and not given_.is_deleted()


@pytest.mark.parametrize("limit", [1, 16, 17, 100, 2048])
def test_buckets_ascend_to_the_limit_in_eight_at_most(backend: Backend, limit: int) -> None:
    buckets = backend.buckets(limit)
    *smaller, last = buckets
    assert list(buckets) == sorted(set(buckets)) and len(buckets) <= 8
    assert last >= limit > max(smaller, default=0)


def test_what_it_is_made_for_is_told(backend: Backend) -> None:
    can, memory = backend.capabilities, backend.memory()
    assert {"linear", "grouped_linear", "dense_attention"} <= set(backend.kernels) and all(backend.kernels.values())
    assert "float32" in can.dtypes and can.matmul_dtypes and 0 < memory.free <= memory.total
    assert hash(backend) == hash(BACKENDS[backend.name]()) and backend == BACKENDS[backend.name]()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_dtype": jnp.float64}, "kv dtype float64, supported are float32"),
        ({"dtype": jnp.int8}, "dtype int8, supported are float32"),
        ({"page_size": 0}, "page size 0"),
    ],
)
def test_what_it_has_no_kernel_for_is_refused_by_name(backend: Backend, change: dict[str, Any], message: str) -> None:
    asked = dict(dtype=jnp.float32, kv_dtype=jnp.float32, page_size=PAGE) | change
    with pytest.raises(UnsupportedError, match=message):
        backend.check([CacheGroup(1, 2, 16)], **asked)  # pyright: ignore[reportArgumentType]
