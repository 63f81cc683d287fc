"""Attention over a cache whose positions, or heads, lie on several devices, is that of one device."""

from collections.abc import Callable
from itertools import product
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from distaff.backends.base import AttentionSpec, Backend, CacheGroup, PyTree, RaggedIndex
from distaff.backends.gpu.backend import GpuBackend
from distaff.backends.reference import ReferenceBackend
from distaff.backends.shared_pages import shared_pages
from distaff.backends.tpu.backend import TpuBackend
from distaff.sharding.context import ContextBackend
from distaff.sharding.exchange import ExchangeBackend
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import parse_layout
from distaff.sharding.wrapped import Wrapped

PAGE, PAGES, HEADS, KV_HEADS, WIDTH = 16, 12, 8, 4, 16
GROUP = CacheGroup(num_layers=2, num_kv_heads=KV_HEADS, head_dim=WIDTH)
CHIP = ReferenceBackend()


def batch(lens: list[int], cached: list[int], num_tokens: int) -> tuple[tuple[Array, Array, Array], RaggedIndex]:
    """Random queries, keys and values; rows of so many tokens, behind so many that are cached; then padding."""
    draw = np.random.default_rng(len(lens)).normal
    q = draw(size=(num_tokens, HEADS, WIDTH)).astype(np.float32)
    k, v = draw(size=(2, num_tokens, KV_HEADS, WIDTH)).astype(np.float32)
    table = np.random.default_rng(1).permutation(PAGES).reshape(len(lens), -1).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
    kv_lens = (np.add(lens, cached) * (np.array(lens) > 0)).astype(np.int32)
    longest = 1 if max(lens) == 1 else None
    return (jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)), RaggedIndex(
        jnp.asarray(table), jnp.asarray(starts), jnp.asarray(kv_lens), longest
    )


def filled(cached: list[int]) -> tuple[tuple[Array, Array, Array], RaggedIndex]:
    """What has been cached before: whole prompts of those lengths."""
    return batch(cached, [0] * len(cached), 96)


def attended(backend: Any, spec: AttentionSpec, sinks: Array | None, lens: list[int], cached: list[int],
             num_tokens: int, first: Any) -> Array:  # fmt: skip
    cache = backend.allocate_cache(GROUP, num_pages=PAGES, page_size=PAGE, dtype=jnp.float32)
    layer = jnp.int32(1)
    before, index = filled(cached)
    _, cache = first.ragged_attention(*before, cache, layer, index, spec, sinks)
    now, index = batch(lens, cached, num_tokens)
    return backend.ragged_attention(*now, cache, layer, index, spec, sinks)[0]


def own_part(x: Array, parts: int, axis: int) -> Array:
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("sequence") * size, size, axis)


def on_devices(function: Callable[[], Array], parts: int, spec: P) -> Array:
    mesh = make_mesh(parse_layout(f"sequence={parts}", num_devices=8))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(), out_specs=spec, check_vma=False))()


SPECS = {
    "plain": (AttentionSpec(0.25), False),
    "window": (AttentionSpec(0.25, window=5), True),
    "window of pages": (AttentionSpec(0.25, window=PAGE), False),
    "soft cap and sinks": (AttentionSpec(0.25, soft_cap=3.0), True),
}
ROWS = {
    "prompts": ([9, 14, 1], [0, 0, 0], 24),
    "chunks and a decode row": ([9, 1, 12], [20, 33, 5], 24),
    "a row over three devices": ([23, 0, 1], [30, 0, 47], 24),
    "decode": ([1, 1, 1], [40, 5, 0], 3),
}


IN_CI: dict[tuple[str, str], Any] = {
    ("window", "chunks and a decode row"): (),
    ("soft cap and sinks", "a row over three devices"): pytest.mark.slow,
    ("soft cap and sinks", "decode"): pytest.mark.slow,
    ("plain", "prompts"): pytest.mark.slow,
}


def sinks_of(wanted: bool) -> Array | None:
    return jnp.linspace(-1, 2, HEADS) if wanted else None


class OwnTokens(Wrapped):
    """A backend fed with each device's own tokens: what a sharded step does around it."""

    def ragged_attention(
        self, q: Array, k: Array, v: Array, cache: PyTree, layer: Array, index: RaggedIndex, spec: AttentionSpec,
        sinks: Array | None = None,
    ) -> tuple[Array, PyTree]:  # fmt: skip
        q, k, v = (own_part(x, 4, 0) for x in (q, k, v))
        return self.inner.ragged_attention(q, k, v, cache, layer, index, spec, sinks)


@pytest.mark.parametrize(
    ("spec", "rows"),
    [pytest.param(*pair, marks=IN_CI.get(pair, pytest.mark.soak)) for pair in product(SPECS, ROWS)],
)
def test_keys_go_round_a_ring(spec: str, rows: str) -> None:
    lens, cached, num_tokens = ROWS[rows]
    attention, with_sinks = SPECS[spec]
    expected = attended(CHIP, attention, sinks_of(with_sinks), lens, cached, num_tokens, CHIP)
    whole = ContextBackend(CHIP, ("sequence",), 4)
    split = ContextBackend(CHIP, ("sequence",), 4, split=num_tokens > 4)
    backend: Any = OwnTokens(cast(Backend, split)) if split.split else split

    def run() -> Array:
        return attended(backend, attention, sinks_of(with_sinks), lens, cached, num_tokens, whole)

    got = on_devices(run, 4, P("sequence") if split.split else P())
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("rows", [pytest.param("chunks and a decode row", marks=pytest.mark.slow), "decode"])
def test_heads_are_exchanged_for_tokens(rows: str) -> None:
    lens, cached, num_tokens = ROWS[rows]
    attention, with_sinks = SPECS["soft cap and sinks"]
    expected = attended(CHIP, attention, sinks_of(with_sinks), lens, cached, num_tokens, CHIP)
    whole = ExchangeBackend(OneShare(), ("sequence",), 4)
    split = ExchangeBackend(OneShare(), ("sequence",), 4, split=num_tokens > 4)
    backend: Any = OwnTokens(cast(Backend, split)) if split.split else split

    def run() -> Array:
        return attended(backend, attention, sinks_of(with_sinks), lens, cached, num_tokens, whole)

    got = on_devices(run, 4, P("sequence") if split.split else P())
    np.testing.assert_allclose(got, expected, atol=2e-6)


class OneShare(ReferenceBackend):
    """Has a quarter of the heads in its cache."""

    def allocate_cache(self, group: CacheGroup, **how: Any) -> Array:
        one = CacheGroup(group.num_layers, group.num_kv_heads // 4, group.head_dim)
        return super().allocate_cache(one, **how)


@pytest.mark.parametrize(
    ("chip", "spec"),
    [
        pytest.param("tpu", "window of pages", marks=pytest.mark.slow),
        pytest.param("gpu", "window of pages", marks=pytest.mark.slow),
        *(pytest.param(chip, spec, marks=pytest.mark.soak) for chip in ("tpu", "gpu") for spec in ("plain", "window")),
    ],
)
def test_a_chips_pages_are_shared(chip: str, spec: str) -> None:
    """The decode kernel, interpreted, attends to a share and tells its log-sum-exps."""
    check_chip(TpuBackend(generation="v6e", interpret=True) if chip == "tpu" else GpuBackend(interpret=True), spec)


def check_chip(chip: Backend, spec: str) -> None:
    pages = shared_pages(chip)
    assert pages is not None
    lens, cached, num_tokens = ROWS["decode"]
    attention, with_sinks = SPECS[spec][0], True
    attention = AttentionSpec(attention.scale, None if attention.window is None else attention.window * 2)
    attended_by: dict[type, Array] = {}
    for backend in (CHIP, ContextBackend(chip, ("sequence",), 2, pages=pages)):

        def run(whole: Any = backend) -> Array:
            cache = whole.allocate_cache(GROUP, num_pages=PAGES, page_size=2 * PAGE, dtype=jnp.float32)
            before, index = filled(cached)
            _, cache = whole.ragged_attention(*before, cache, jnp.int32(1), index, attention)
            now, index = batch(lens, cached, num_tokens)
            return whole.ragged_attention(*now, cache, jnp.int32(1), index, attention, sinks_of(with_sinks))[0]

        attended_by[type(backend)] = run() if backend is CHIP else on_devices(run, 2, P())
    np.testing.assert_allclose(attended_by[ContextBackend], attended_by[ReferenceBackend], atol=2e-6)
