"""8-bit caches with a scale for each token: TPU kernels, interpreted, against the reference; pages and scales that
nobody wrote are NaN where the type has one."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec, CacheGroup, RaggedIndex
from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend, reference_ragged_attention
from distaff.backends.token_scales import LARGEST, TokenScaled
from distaff.backends.tpu.backend import TpuBackend
from distaff.backends.tpu.decode import DecodeBlocks, decode_attention
from distaff.backends.tpu.decode_work import decode_work

from .conftest import LAYER, Heads, Step, unpacked

PAGE, WIDTH = 128, 3
HEADS = Heads(4, 2, 64)
# Errors relative to the largest output. Pairs of 8-bit integers have 14 bits, those of 8-bit floats 8; scales of tokens
# differ by 30. bf16 has a bound of its own below.
BOUNDS = {("int8", "v6e"): 1e-3, ("int8", "v5e"): 1e-3, ("float8_e4m3fn", "tpu7x"): 3e-2}


def scaled(step: Step, kv_dtype: str, seed: int) -> tuple[TokenScaled, TokenScaled]:
    """The step's pages with scales of tokens: ours, and as the reference has them."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.uniform(-2, 1.5, size=(*step.pages.shape[:2], 2, PAGE))).astype(np.float32)
    if kv_dtype == "int8":
        scales /= 40
    old = np.zeros_like(step.written)
    for row, (length, new) in enumerate(step.rows):
        for position in range(length - new):
            old[LAYER, step.table[row, position // PAGE], position % PAGE] = True
    scales = jnp.asarray(np.where(old[:, :, None], scales, np.nan))
    theirs = jnp.asarray(unpacked(step.pages, step.heads)).astype(kv_dtype)
    return TokenScaled(step.pages, scales), TokenScaled(theirs, scales)


def drawn(rows: list[tuple[int, int]], seed: int, kv_dtype: str, bound: int | None, tokens: int) -> Step:
    return Step.drawn(
        HEADS, rows, page=PAGE, width=WIDTH, seed=seed, dtype="float32", kv_dtype=kv_dtype, max_query_len=bound,
        num_tokens=tokens,
    )  # fmt: skip


@cache
def decode(generation: str, spec: AttentionSpec) -> Any:
    blocks = DecodeBlocks(256, 2**26)
    return jax.jit(partial(decode_attention, spec=spec, generation=generation, blocks=blocks, interpret=True))


@cache
def reference(spec: AttentionSpec) -> Any:
    return jax.jit(partial(reference_ragged_attention, spec=spec))


def agree(ours: Any, theirs: Any, step: Step, error: np.ndarray | float) -> None:
    (out, cache), (want, want_cache) = ours, theirs
    assert np.all((np.abs(np.asarray(out - want)) <= error)[: step.num_new])
    written = step.written
    got = unpacked(cache.numbers, step.heads)[written]
    # A quotient that lies between two numbers may be rounded to either.
    assert np.abs(got - np.asarray(want_cache.numbers.astype(jnp.float32))[written]).max(initial=0) <= 1
    at = np.moveaxis(np.broadcast_to(written[:, :, None], cache.scales.shape), 2, 2)
    np.testing.assert_array_equal(np.asarray(cache.scales)[at], np.asarray(want_cache.scales)[at])


@pytest.mark.parametrize(
    ("kv_dtype", "generation"),
    [pytest.param(*key, marks=() if key == ("int8", "v6e") else pytest.mark.slow) for key in BOUNDS],
)
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_decode_is_the_references(kv_dtype: str, generation: str, data: st.DataObject, seed: int) -> None:
    lengths = st.sampled_from([0, 1, 127, 128, 129, 255, 256, 257, 384])
    rows = [(length, int(length > 0)) for length in (data.draw(lengths) for _ in range(3))]
    step = drawn(rows, seed, kv_dtype, 1, 5)
    spec = AttentionSpec(HEADS.head_dim**-0.5, data.draw(st.sampled_from([None, 150])))
    sinks = jnp.linspace(-1, 2, HEADS.num_heads)
    ours, theirs = scaled(step, kv_dtype, seed)
    call = (step.q, step.k, step.v)
    got = decode(generation, spec)(*call, ours, jnp.int32(LAYER), step.index, sinks=sinks)
    want = reference(spec)(*call, theirs, jnp.int32(LAYER), step.index, sinks=sinks)
    agree(got, want, step, BOUNDS[kv_dtype, generation] * np.abs(np.asarray(want[0])).max())


@pytest.mark.slow
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_weights_of_float8_values_err_as_bfloat16_does(data: st.DataObject, seed: int) -> None:
    """v6e multiplies 8-bit floats in bf16: each weight errs by 2^-8 of itself at most, so an output by that share of
    the sum of weights times absolute values. Queries are such that bf16 holds what the kernel makes of them."""
    lengths = st.sampled_from([0, 1, 127, 128, 129, 255, 256, 257, 384])
    rows = [(length, int(length > 0)) for length in (data.draw(lengths) for _ in range(3))]
    step = drawn(rows, seed, "float8_e4m3fn", 1, 5)
    sinks = jnp.linspace(-1, 2, HEADS.num_heads)
    spec = AttentionSpec(HEADS.head_dim**-0.5, data.draw(st.sampled_from([None, 150])))
    factor = spec.scale * np.log2(np.e)
    q = (step.q * factor).astype(jnp.bfloat16).astype(jnp.float32) / factor
    ours, theirs = scaled(step, "float8_e4m3fn", seed)
    got = decode("v6e", spec)(q, step.k, step.v, ours, jnp.int32(LAYER), step.index, sinks=sinks)
    want = reference(spec)(q, step.k, step.v, theirs, jnp.int32(LAYER), step.index, sinks=sinks)
    absolute = replace(theirs, numbers=theirs.numbers.at[:, :, :, 1].set(jnp.abs(theirs.numbers[:, :, :, 1])))
    sums, _ = reference(spec)(q, step.k, jnp.abs(step.v), absolute, jnp.int32(LAYER), step.index, sinks=sinks)
    agree(got, want, step, 1.001 * 2.0**-8 * np.asarray(sums))


@pytest.mark.slow
def test_a_mixed_batch_is_the_references() -> None:
    """Decode rows and prefill rows in one call of the backend: each kernel sees what the other wrote of scales."""
    rows = [(300, 150), (129, 1), (0, 0), (20, 20)]
    spec = AttentionSpec(HEADS.head_dim**-0.5)
    step = drawn(rows, 1, "int8", None, 180)
    ours, theirs = scaled(step, "int8", 1)
    backend = TpuBackend(interpret=True)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, cache: TokenScaled) -> Any:
        return backend.ragged_attention(q, k, v, cache, jnp.int32(LAYER), step.index, spec)

    got = jax.jit(call)(step.q, step.k, step.v, ours)
    want = reference(spec)(step.q, step.k, step.v, theirs, jnp.int32(LAYER), step.index)
    agree(got, want, step, 1e-3 * np.abs(np.asarray(want[0])).max())


def test_eight_bits_and_a_scale_are_close_to_what_was_written() -> None:
    """Tokens of very different sizes keep 7 bits each."""
    backend, spec = ReferenceBackend(), AttentionSpec(0.125)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(40, heads, 64)), jnp.float32) for heads in (4, 2, 2))
    k, v = (x * jnp.exp(jnp.linspace(-6, 3, 40))[:, None, None] for x in (k, v))
    pages = backend.allocate_cache(CacheGroup(1, 2, 64), num_pages=3, page_size=16, dtype=jnp.float32)
    index = RaggedIndex(jnp.asarray([[2, 0, 1]]), jnp.asarray([0, 40]), jnp.asarray([40]))
    exact, _ = backend.ragged_attention(q, k, v, pages, jnp.int32(0), index, spec)
    errors = {}
    for name in LARGEST:
        empty = TokenScaled.of(pages.astype(name), 16)
        out, cache = backend.ragged_attention(q, k, v, empty, jnp.int32(0), index, spec)
        errors[name] = float(jnp.abs(out - exact).max() / jnp.abs(exact).max())
        assert cache.numbers.dtype == jnp.dtype(name) and float(cache.scales[0, 1, 1, 8:].max()) == 0
    assert errors["int8"] < 0.02 and errors["float8_e4m3fn"] < 0.1


@pytest.mark.parametrize(
    ("kv_dtype", "page", "message"),
    [
        ("bfloat16", 128, "kv dtype bfloat16 with token scales, supported are int8, float8_e4m3fn"),
        ("int8", 16, "page size 16 with token scales, supported are 128, 256"),
    ],
)
def test_what_it_has_no_copies_for_is_refused(kv_dtype: str, page: int, message: str) -> None:
    backend = TpuBackend(interpret=True)
    pages = backend.allocate_cache(CacheGroup(1, 2, 64), num_pages=2, page_size=page, dtype=kv_dtype)
    q, index = jnp.zeros((1, 2, 64)), RaggedIndex(*(jnp.asarray(x) for x in ([[0]], [0, 1], [1])), max_query_len=1)
    with pytest.raises(UnsupportedError, match=message):
        backend.ragged_attention(q, q, q, TokenScaled.of(pages, page), jnp.int32(0), index, AttentionSpec(1.0))


def test_scales_are_counted_as_bytes() -> None:
    shape: dict[str, Any] = dict(
        num_heads=32, num_kv_heads=8, head_dim=128, page_size=128, kv_dtype="int8", generation="v6e"
    )  # fmt: skip
    plain, with_scales = (
        decode_work([1024, 100], [1, 1], table_width=8, token_scales=told, **shape).hbm_bytes for told in (False, True)
    )
    assert with_scales - plain == 9 * 2 * 128 * 4
