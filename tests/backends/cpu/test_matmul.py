"""The CPU's matmul kernels against numpy; and that a row's bits depend on neither its neighbours nor their number."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.cpu import jit, matmul, tile
from distaff.backends.cpu.backend import CpuBackend
from distaff.backends.cpu.packing import PackedMatrix, pack, pack_int8
from distaff.backends.quantized import Quantized, round_tokens

DTYPES = ("float32", "bfloat16")
BACKEND = CpuBackend()

# Odd widths, a part of a panel, many panels, a K that several rows of x share the cache with.
WIDTHS = ((1, 1), (33, 31), (64, 32), (7, 100), (130, 515), (576, 192))
ROWS = st.integers(1, 70)


@cache
def weights(width: tuple[int, int], dtype: str, stacked: int = 3) -> np.ndarray:
    K, N = width
    w = np.random.default_rng(K * N).standard_normal((stacked, N, K))
    return np.asarray(w, jnp.dtype(dtype))


def rows(num_rows: int, K: int, dtype: str, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((num_rows, K)), dtype)


@partial(jax.jit, static_argnames="out_dtype")
def linear(x: jax.Array, weight: PackedMatrix, layer: jax.Array, out_dtype: str | None = None) -> jax.Array:
    return BACKEND.linear(x, weight.layer(layer), "TD,FD->TF", out_dtype=out_dtype)


def assert_near(y: jax.Array, x: jax.Array, w: np.ndarray) -> None:
    """Near x w.T to 1e-5 of the magnitudes that were summed, and to half a unit of the type that it is rounded to."""
    a, b = np.asarray(x, np.float64), w.astype(np.float64)
    relative = 1e-5 + (2**-8 if y.dtype == jnp.bfloat16 else 0.0)
    error, summed = np.abs(np.asarray(y, np.float64) - a @ b.T), np.abs(a) @ np.abs(b).T
    np.testing.assert_array_less(error, relative * summed + 1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15)
@given(num_rows=ROWS, width=st.sampled_from(WIDTHS), layer=st.integers(0, 2), seed=st.integers(0, 9))
def test_linear(dtype: str, num_rows: int, width: tuple[int, int], layer: int, seed: int) -> None:
    w, x = weights(width, dtype), rows(num_rows, width[0], dtype, seed)
    for out_dtype in (None, "float32"):
        y = linear(x, pack(w, 1, 1), jnp.int32(layer), out_dtype)
        assert y.dtype == (out_dtype or dtype) and y.shape == (num_rows, width[1])
        assert_near(y, x, w[layer])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15)
@given(num_rows=ROWS, width=st.sampled_from(WIDTHS), data=st.data())
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    dtype: str, num_rows: int, width: tuple[int, int], data: st.DataObject
) -> None:
    x, packed = rows(num_rows, width[0], dtype, 0), pack(weights(width, dtype), 1, 1)
    together = np.asarray(linear(x, packed, jnp.int32(1)))
    start = data.draw(st.integers(0, num_rows - 1))
    some = np.asarray(linear(x[start : data.draw(st.integers(start + 1, num_rows))], packed, jnp.int32(1)))
    np.testing.assert_array_equal(some.view(np.uint8), together[start : start + len(some)].view(np.uint8))


@pytest.mark.parametrize("kind", [*DTYPES, "int8", "int8-weight"])
@pytest.mark.parametrize("num_rows", [1, 13, 700])
def test_several_products_of_one_x_have_the_bits_of_each(num_rows: int, kind: str) -> None:
    """More than one call takes, of several widths; rows behind the first `count` come out as zeros."""
    dtype = kind if kind in DTYPES else "bfloat16"
    made = [jnp.asarray(weights((130, columns), dtype)) for columns in (70, 1, 33, 515, 64)]
    packed = [pack(w, 1, 1) if kind in DTYPES else pack_int8(to_bytes(w, kind == "int8"), 1, 1) for w in made]
    views = [each.layer(jnp.int32(2)) for each in packed]
    x, count = rows(num_rows, 130, dtype, 3), -(-num_rows // 2)
    backend = BACKEND.with_rows(jnp.int32(count))
    together = jax.jit(lambda x: backend.linears(x, views, ["TD,FD->TF"] * len(views)))(x)
    for y, view in zip(together, views, strict=True):
        np.testing.assert_array_equal(y[:count], BACKEND.linear(x[:count], view, "TD,FD->TF"))
        assert y.any() and not y[count:].any()


def to_bytes(weight: jax.Array, activations: bool) -> Quantized:
    scale = jnp.abs(weight.astype(jnp.float32)).max(axis=-1, keepdims=True) / 127
    values = jnp.round(weight.astype(jnp.float32) / scale).astype(jnp.int8)
    return Quantized(values, scale, "int8", weight.dtype, activations)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_are_multiplied_in_bands(dtype: str) -> None:
    w, x = weights((576, 192), dtype), rows(700, 576, dtype, 0)
    y = linear(x, pack(w, 1, 1), jnp.int32(2))
    assert_near(y, x, w[2])
    np.testing.assert_array_equal(np.asarray(y)[333:334], np.asarray(linear(x[333:334], pack(w, 1, 1), jnp.int32(2))))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15)
@given(sizes=st.lists(st.sampled_from((0, 0, 1, 2, 5, 13, 30)), min_size=4, max_size=4), behind=st.integers(0, 5))
def test_grouped_linear(dtype: str, sizes: list[int], behind: int) -> None:
    """Two layers of four experts; some groups are empty, and some rows stand behind the last group."""
    K, N, end = 66, 70, sum(sizes)
    w = np.random.default_rng(0).standard_normal((2, 4, N, K)).astype(jnp.dtype(dtype))
    x = rows(end + behind + 1, K, dtype, 1)
    view = pack(w, 2, 1).layer(jnp.int32(1))
    y = jax.jit(BACKEND.grouped_linear)(x, view, jnp.asarray(sizes, jnp.int32))
    assert not np.asarray(y[end:], np.float32).any()
    start = 0
    for expert, size in enumerate(sizes):
        if not size:
            continue
        part = slice(start, start + size)
        assert_near(y[part], x[part], w[1, expert])
        np.testing.assert_array_equal(y[part], BACKEND.linear(x[part], pack(w[1, expert], 0, 1), "TD,FD->TF"))
        start += size


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: str) -> None:
    """Infinities and NaN come through."""
    one = np.ones((1, 1), jnp.dtype(dtype))
    x = jnp.asarray([[jnp.inf], [-jnp.inf], [jnp.nan], [0.0], [-2.5]], dtype)
    y = BACKEND.linear(x, pack(one, 0, 1), "TD,FD->TF")
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(x, np.float32))


def test_ties_are_rounded_to_even() -> None:
    x = jnp.asarray([[1.0, 2**-8], [1.0, 3 * 2**-8], [1.0, 2**-8 + 2**-12]], "bfloat16")
    y = BACKEND.linear(x, pack(np.ones((1, 2), jnp.bfloat16), 0, 1), "TD,FD->TF")
    np.testing.assert_array_equal(np.asarray(y, np.float32)[:, 0], [1.0, 1 + 2**-6, 1 + 2**-7])


def test_many_threads_on_many_devices() -> None:
    """All share XLA's pool; each loop ends with its own chunks, whoever runs them."""
    w, x = weights((576, 192), "float32"), rows(40, 576, "float32", 0)
    packed, expected = pack(w, 1, 1), [np.asarray(linear(x, pack(w, 1, 1), jnp.int32(layer))) for layer in range(3)]

    def work(number: int) -> None:
        device = jax.devices()[number % len(jax.devices())]
        here, weight = jax.device_put((x, packed), device)
        for layer in (0, 1, 2) * 20:
            found = linear(here, weight, jax.device_put(jnp.int32(layer), device))
            np.testing.assert_array_equal(np.asarray(found), expected[layer])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.fixture
def as_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, set[str]], None]]:
    """Makes the kernels of another processor, for the time of a test."""
    cached = (tile.tile, tile.multiplies_bf16, tile.dots_bytes, tile.multiplies_bytes)

    def pretend(name: str, features: set[str]) -> None:
        for module in (tile, jit):
            monkeypatch.setattr(module, "features", lambda: frozenset(features))
            monkeypatch.setattr(module, "processor", lambda: name)
        monkeypatch.setattr(matmul, "targets", cache(matmul.targets.__wrapped__))
        for function in cached:
            function.cache_clear()

    yield pretend
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


@pytest.mark.skipif(not {"avx2", "fma"} <= jit.features(), reason="needs a processor with AVX2")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "features", "lanes"), [("haswell", {"sse2", "avx", "avx2", "fma"}, 8), ("x86-64", {"sse2"}, 4)]
)
def test_narrower_processors(
    name: str, features: set[str], lanes: int, dtype: str, as_processor: Callable[[str, set[str]], None]
) -> None:
    as_processor(name, features)
    assert tile.tile().lanes == lanes
    w = weights((130, 515), dtype)
    for num_rows in (1, 3, 23):
        x = rows(num_rows, 130, dtype, 0)
        assert_near(BACKEND.linear(x, pack(w[0], 0, 1), "TD,FD->TF"), x, w[0])


@pytest.mark.skipif(not {"avx2", "fma"} <= jit.features(), reason="needs a processor with AVX2")
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("haswell", {"sse2", "avx", "avx2", "fma"}),
        ("x86-64", {"sse2"}),
        pytest.param(
            "skylake-avx512",
            {"sse2", "avx", "avx2", "fma", "avx512f", "avx512bw"},
            marks=pytest.mark.skipif("avx512bw" not in jit.features(), reason="needs a processor with AVX-512"),
        ),
    ],
)
def test_bytes_are_summed_exactly_without_dot_products_of_bytes(
    name: str, features: set[str], x_dtype: str, as_processor: Callable[[str, set[str]], None]
) -> None:
    """Pairs of 16 bits: not one bit differs from numpy's whole numbers, the largest on both sides included."""
    as_processor(name, features)
    assert tile.multiplies_bytes() and not tile.dots_bytes()
    rng = np.random.default_rng(0)
    for num_rows, width, outputs in ((1, 3, 5), (7, 130, 33), (23, 1030, 70)):
        numbers = rng.integers(-128, 128, (outputs, width)).astype(np.int8)
        numbers[0], numbers[-1] = -128, 127
        scale = rng.uniform(0.1, 2, (outputs, 1)).astype(np.float32)
        weight = Quantized(jnp.asarray(numbers), jnp.asarray(scale), "int8", jnp.dtype(x_dtype), True)
        x = jnp.asarray(rng.standard_normal((num_rows, width)), x_dtype).at[0].set(1.0)
        tokens = jax.jit(round_tokens, static_argnums=1)(x, "int8")
        sums = np.asarray(tokens.numbers, np.int32) @ numbers.astype(np.int32).T
        want = sums.astype(np.float32) * scale[:, 0] * np.asarray(tokens.scale)[:, None]
        found = BACKEND.linear(x, pack_int8(weight, 0, 1), "TD,FD->TF", out_dtype=jnp.float32)
        np.testing.assert_array_equal(np.asarray(found), want)


@pytest.mark.skipif("avx512bf16" not in jit.features(), reason="needs a processor with AVX512_BF16")
def test_zen_multiplies_pairs_of_bf16(as_processor: Callable[[str, set[str]], None]) -> None:
    as_processor("znver4", set(jit.features()))
    assert tile.multiplies_bf16() and "dpbf16ps" in str(matmul.emitted("bf16")[0])
    w, x = weights((33, 31), "bfloat16"), rows(17, 33, "bfloat16", 0)
    assert_near(BACKEND.linear(x, pack(w[0], 0, 1), "TD,FD->TF"), x, w[0])
