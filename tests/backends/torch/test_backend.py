"""The contract of backends, kept by what a torch backend compiles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend, CacheGroup
from distaff.backends.errors import UnsupportedError
from distaff.backends.quantized import Quantized
from distaff.backends.reference import ReferenceBackend
from distaff.backends.select import select_backend
from distaff.backends.torch.array import DeviceArray
from distaff.models.kv_cache import copy_pages, read_pages, write_pages

BACKEND = select_backend("torch:cpu")


def shapes(*args: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)


def test_it_is_a_backend() -> None:
    assert isinstance(BACKEND, Backend) and BACKEND.name == "torch:cpu"
    again = select_backend("torch:cpu")
    assert hash(BACKEND) == hash(again) and again == BACKEND
    can, memory = BACKEND.capabilities, BACKEND.memory()
    assert {"linear", "grouped_linear", "dense_attention"} <= set(BACKEND.kernels) and all(BACKEND.kernels.values())
    assert "float32" in can.dtypes and 0 < memory.free <= memory.total


@pytest.mark.parametrize("limit", [1, 16, 17, 100, 2048, 100_000])
def test_buckets_ascend_to_the_limit_in_eight_at_most(limit: int) -> None:
    *smaller, last = buckets = BACKEND.buckets(limit)
    assert list(buckets) == sorted(set(buckets)) and len(buckets) <= 8
    assert last >= limit > max(smaller, default=0)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint32", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_arrays_come_back_as_they_went(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2**15, shape)).astype(jnp.dtype(dtype))
    for given in (array, jnp.asarray(array)):
        kept = BACKEND.put(given)
        assert isinstance(kept, DeviceArray) and (kept.shape, kept.dtype) == (shape, array.dtype)
        np.testing.assert_array_equal(BACKEND.get(kept), array)


def test_weights_of_jax_are_handed_over_without_a_copy() -> None:
    for dtype in ("float32", "bfloat16"):
        weight = jnp.ones((64, 64), dtype)
        kept = BACKEND.prepare_params({"w": weight})["w"]
        assert kept.tensor.data_ptr() == weight.unsafe_buffer_pointer()


def test_a_program_consumes_what_is_donated_and_keeps_the_rest() -> None:
    first, other = (BACKEND.put(np.ones((64, 64), np.float32)) for _ in range(2))
    program = BACKEND.compile(lambda x, y: (x + y, x), shapes(first, other), donate=(0,))
    total, back = program(first, other)
    np.testing.assert_array_equal(BACKEND.get(total), 2.0)
    np.testing.assert_array_equal(BACKEND.get(back), 1.0)
    assert first.is_deleted() and not other.is_deleted()
    with pytest.raises(RuntimeError, match="was donated"):
        np.asarray(first)


def test_an_array_of_jax_that_is_donated_is_copied_and_stays_as_it_was() -> None:
    x = jnp.zeros((64, 512))
    program = BACKEND.compile(lambda x: x.at[3].set(1.0), shapes(x), donate=(0,))
    for given in (x, BACKEND.put(x)):
        assert np.asarray(program(given)).sum() == 512 and float(x.sum()) == 0


@pytest.mark.parametrize("wrong", [np.ones(4, np.float32), np.ones(3, np.int32)])
def test_other_shapes_and_types_are_refused(wrong: np.ndarray) -> None:
    program = BACKEND.compile(lambda x: x * 2, shapes(np.ones(3, np.float32)))
    with pytest.raises(TypeError, match=r"takes float32\[3\], not"):
        program(wrong)


def test_pages_are_copied_in_place() -> None:
    group = CacheGroup(2, 2, 16)
    cache = (BACKEND.allocate_cache(group, num_pages=300, page_size=16, dtype=jnp.float32),)
    cache[0][:, 3] = 7
    ids = (np.asarray([3, 0], np.int32),), (np.asarray([1, 300], np.int32),)  # the second is left out
    program = BACKEND.compile(copy_pages, shapes(cache, *ids), donate=(0,))
    (moved,) = program(cache, *ids)
    assert np.shares_memory(np.asarray(moved), cache[0])
    got = np.asarray(moved)
    assert (got[:, [1, 3]] == 7).all() and got.sum() == 2 * 7 * got[:, 1].size
    assert jax.eval_shape(lambda: BACKEND.allocate_cache(group, num_pages=1, page_size=1, dtype="bfloat16")).ndim == 6


def test_pages_are_read_and_written_by_number() -> None:
    cache = (np.zeros((2, 5, 16, 2, 2, 16), np.float32),)
    cache[0][:, 3] = 7
    three, one = np.asarray([3], np.int32), np.asarray([1], np.int32)
    run = BACKEND.compile(
        lambda cache, a, b: write_pages(cache, [b], read_pages(cache, [a])), shapes(cache, three, one)
    )
    (moved,) = run(cache, three, one)
    assert (np.asarray(moved)[:, 1] == 7).all() and (np.asarray(moved)[:, 2] == 0).all()


@pytest.mark.parametrize(
    ("kind", "activations"),
    [
        ("int8", True),
        ("int8", False),
        ("int4", False),
        ("float8_e4m3fn", True),
        ("float8_e4m3fn", False),
    ],
)
def test_products_with_small_numbers_are_those_of_the_reference(kind: str, activations: bool) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (5, 8)).astype(np.uint8)
    numbers = values if kind == "int4" else values.view(np.int8)
    if kind == "float8_e4m3fn":
        numbers = np.asarray(jnp.asarray(rng.normal(size=(5, 8)) * 100, kind))
    scale = jnp.linspace(0.5, 2, 5)[:, None]
    weight = Quantized(jnp.asarray(numbers), scale, kind, jnp.dtype("float32"), activations=activations)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, weight.shape[1])), jnp.float32)

    def product(weight: Quantized, x: jax.Array) -> jax.Array:
        return BACKEND.linear(x, weight, "TD,FD->TF")

    program = BACKEND.compile(product, (weight, x))
    got = BACKEND.get(program(BACKEND.prepare_params(weight), BACKEND.put(x)))
    np.testing.assert_allclose(got, ReferenceBackend().linear(x, weight, "TD,FD->TF"), rtol=1e-5, atol=1e-5)


def test_traced_weights_mean_a_layout_and_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layout over processes"):
        jax.eval_shape(BACKEND.prepare_params, {"w": jnp.ones(3)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_dtype": jnp.float64}, "kv dtype float64"),
        ({"dtype": jnp.int8}, "dtype int8"),
        ({"page_size": 0}, "page size 0"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = dict(dtype=jnp.float32, kv_dtype=jnp.float32, page_size=16) | change
    with pytest.raises(UnsupportedError, match=message):
        BACKEND.check([CacheGroup(1, 2, 16)], **asked)
