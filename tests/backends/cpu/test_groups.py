"""Weights that stay packed in groups: their products have the bits of expanded ones, as the kernels multiply those."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.cpu import groups, jit, matmul, tile
from distaff.backends.cpu.backend import CpuBackend
from distaff.backends.cpu.packing import PackedMatrix, pack
from distaff.backends.cpu.packing_groups import PackedGroups
from distaff.backends.quantized import HALF_BYTES, Quantized, dequantized, is_quantized

BACKEND = CpuBackend()


class Form(NamedTuple):
    """How numbers are stored: kind, types of scales and minima, and how many share them."""

    kind: str
    scales: str
    minima: str | None
    size: int


FORMS = {
    "int4": Form("int4", "float32", None, 64),
    "int8-weight:32": Form("int8", "float32", None, 32),
    "Q4_0": Form("int4", "float16", None, 32),
    "Q4_1": Form("uint4", "float16", "float16", 32),
    "Q4_K": Form("uint4", "float32", "float32", 32),
    "Q8_0": Form("int8", "float16", None, 32),
    "MXFP4": Form("float4_e2m1fn", "uint8", None, 32),
    "nf4": Form("nf4", "float32", None, 64),
    "fp4": Form("fp4", "float32", None, 64),
    "gptq-8": Form("uint8", "float16", "float32", 128),
    "compressed-tensors": Form("int4", "bfloat16", None, 128),
    "few": Form("uint4", "float16", "bfloat16", 4),
}
_QUICK = {("int4", "float32"), *((name, "bfloat16") for name in ("int4", "Q4_1", "Q8_0", "MXFP4", "nf4"))}
DTYPES = ("float32", "bfloat16")
CASES = [
    pytest.param(name, dtype, marks=() if (name, dtype) in _QUICK else pytest.mark.slow)
    for name in FORMS
    for dtype in DTYPES
]


def stored(form: Form, rows: tuple[int, ...], inner: int, dtype: str) -> Quantized:
    """Any numbers [*rows, inner]."""
    rng = np.random.default_rng(inner)
    values = rng.integers(0, 256, (*rows, inner // 2 if form.kind in HALF_BYTES else inner), np.uint8)
    shape = (*rows, inner // form.size)
    exponents = rng.integers(110, 130, shape)
    scale = exponents if form.scales == "uint8" else rng.uniform(-0.1, 0.1, shape)
    minimum = None if form.minima is None else jnp.asarray(rng.uniform(-1, 1, shape), form.minima)
    numbers = values.view(np.int8) if form.kind == "int8" else values
    scales = jnp.asarray(scale, form.scales)
    return Quantized(jnp.asarray(numbers), scales, form.kind, jnp.dtype(dtype), minimum=minimum)


@cache
def both(name: str, dtype: str, num_out: int, num_groups: int, stack: tuple[int, ...] = (2,)) -> list[PackedMatrix]:
    """Some matrices, packed as they are stored and expanded."""
    form = FORMS[name]
    weight = stored(form, (*stack, num_out), num_groups * form.size, dtype)
    keys = ("experts", "gate") if len(stack) == 2 else ("up", "weight")
    tree = {"segments": {keys[0]: {keys[1]: weight}}}
    packed = BACKEND.prepare_params(tree)["segments"][keys[0]][keys[1]]
    assert isinstance(packed, PackedGroups) and packed.shape == weight.shape and packed.dtype == dtype
    return [packed, pack(dequantized(weight), len(stack), 1)]


def rows(num_rows: int, inner: int, dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(num_rows).standard_normal((num_rows, inner)), dtype)


def assert_same_bits(some: jax.Array, others: jax.Array) -> None:
    assert some.dtype == others.dtype
    np.testing.assert_array_equal(np.asarray(some).view(np.uint8), np.asarray(others).view(np.uint8))


@partial(jax.jit, static_argnames="out_dtype")
def linear(x: jax.Array, weight: PackedMatrix, count: jax.Array, out_dtype: str) -> jax.Array:
    backend = BACKEND.with_rows(count)
    return backend.linear(x, weight.layer(jnp.int32(1)), "TD,FD->TF", out_dtype=out_dtype)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@settings(max_examples=30)
@given(num_rows=st.integers(1, 40), width=st.sampled_from(((33, 2), (70, 3))), wide=st.booleans())
def test_products_have_the_bits_of_expanded_weights(
    name: str, dtype: str, num_rows: int, width: tuple[int, int], wide: bool
) -> None:
    packed, expanded = both(name, dtype, *width)
    x, count = rows(40, packed.inner[0], dtype), jnp.int32(num_rows)
    some, others = (linear(x, each, count, "float32" if wide else dtype) for each in (packed, expanded))
    assert_same_bits(some, others)
    assert some[:num_rows].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 13, 700])
def test_several_products_of_one_x(dtype: str, num_rows: int) -> None:
    """More than one call takes, of several widths; rows behind the first `count` come out as zeros."""
    pairs = [both("Q4_1", dtype, num_out, 4) for num_out in (70, 1, 33, 515, 64)]
    x, count = rows(num_rows, 128, dtype), -(-num_rows // 2)
    backend = BACKEND.with_rows(jnp.int32(count))

    def linears(number: int) -> tuple[jax.Array, ...]:
        views = [pair[number].layer(jnp.int32(1)) for pair in pairs]
        return jax.jit(lambda x: backend.linears(x, views, ["TD,FD->TF"] * len(views)))(x)

    for y, want in zip(linears(0), linears(1), strict=True):
        assert_same_bits(y, want)
        assert y.any() and not y[count:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["MXFP4", "Q8_0"])
@settings(max_examples=10)
@given(sizes=st.lists(st.sampled_from((0, 0, 1, 2, 5, 13, 30)), min_size=4, max_size=4), behind=st.integers(0, 5))
def test_experts(name: str, dtype: str, sizes: list[int], behind: int) -> None:
    views = [each.layer(jnp.int32(1)) for each in both(name, dtype, 70, 2, (2, 4))]
    x = rows(sum(sizes) + behind + 1, 64, dtype)
    grouped = jax.jit(BACKEND.grouped_linear)
    some, others = (grouped(x, view, jnp.asarray(sizes, jnp.int32)) for view in views)
    assert_same_bits(some, others)
    assert not np.asarray(some[sum(sizes) :], np.float32).any()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_rows_of_a_table(name: str, dtype: str) -> None:
    table = stored(FORMS[name], (77,), 2 * FORMS[name].size, dtype)
    packed = BACKEND.prepare_params({"table": table})["table"]
    assert isinstance(packed, PackedGroups)
    ids = jnp.asarray([0, 76, 31, 32, 33, 31])
    assert_same_bits(jax.jit(BACKEND.embed)(packed, ids), dequantized(table)[ids])


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (4, 1), (1, 2), (4, 2)])
def test_groups_of_two_axes(shape: tuple[int, int]) -> None:
    """An output projection's: of several heads, of one, or of a part of each."""
    weight = stored(FORMS["int4"]._replace(size=8), (5, 4), 16, "float32")
    scale = jnp.asarray(np.random.default_rng(0).uniform(size=(5, *shape)), jnp.float32)
    weight = Quantized(weight.values, scale, "int4", weight.dtype)
    packed = BACKEND.prepare_params({"attention": {"o": {"weight": weight}}})["attention"]["o"]["weight"]
    assert isinstance(packed, PackedGroups) and packed.inner == (4, 16)
    x = rows(3, 64, "float32").reshape(3, 4, 16)
    got, want = (BACKEND.linear(x, each, "TNH,DNH->TD") for each in (packed, pack(dequantized(weight), 0, 2)))
    assert_same_bits(got, want)


@pytest.mark.parametrize("name", FORMS)
def test_panels_take_no_more_than_what_is_stored(name: str) -> None:
    form = FORMS[name]
    weight = stored(form, (64,), 4 * form.size, "bfloat16")
    assert BACKEND.prepare_params({"weight": weight})["weight"].panels.nbytes == weight.nbytes


@pytest.mark.parametrize("size", [2, 6])
def test_groups_that_kernels_do_not_take_are_left_to_xla(size: int) -> None:
    weight = stored(FORMS["int4"]._replace(size=size), (5,), 24, "float32")
    kept = BACKEND.prepare_params({"weight": weight})["weight"]
    assert is_quantized(kept)
    x = rows(3, 24, "float32")
    got = BACKEND.linear(x, kept, "TD,FD->TF")
    np.testing.assert_allclose(got, x @ np.asarray(dequantized(weight)).T, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not {"avx2", "fma"} <= jit.features(), reason="needs a processor with AVX2")
@pytest.mark.parametrize(
    ("processor", "features"),
    [
        ("haswell", {"sse2", "avx", "avx2", "fma"}),
        pytest.param("x86-64", {"sse2"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("Q4_1", "bfloat16"), ("nf4", "float32"), pytest.param("Q8_0", "bfloat16", marks=pytest.mark.slow)],
)
def test_narrower_processors(
    processor: str, features: set[str], name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a table in a register, and without float16."""
    for module in (tile, jit, groups):
        monkeypatch.setattr(module, "features", lambda: frozenset(features))
    for module in (tile, jit):
        monkeypatch.setattr(module, "processor", lambda: processor)
    monkeypatch.setattr(matmul, "targets", cache(matmul.targets.__wrapped__))
    fitting = (tile.tile, tile.multiplies_bf16)
    for function in fitting:
        function.cache_clear()
    try:
        packed, expanded = both.__wrapped__(name, dtype, 70, 2)
        for num_rows in (1, 3, 23):
            x = rows(num_rows, packed.inner[0], dtype)
            got, want = (BACKEND.linear(x, each.layer(jnp.int32(1)), "TD,FD->TF") for each in (packed, expanded))
            assert_same_bits(got, want)
        ids = jnp.asarray([0, 69, 17])
        assert_same_bits(packed.layer(jnp.int32(1)).rows(ids), expanded.layer(jnp.int32(1)).rows(ids))
    finally:
        monkeypatch.undo()
        for function in fitting:
            function.cache_clear()
