"""Arithmetic, one number at a time, against JAX: wrap-around, division by zero, NaN and signed zeros included."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import lax

from .running import compare

INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")
FLOATS = ("float32", "bfloat16", "float16")
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 100.0, -100.0, 1e-3, np.inf, -np.inf, np.nan]


def numbers(dtype: str) -> np.ndarray:
    """Numbers of a type among which are those that go wrong."""
    if dtype == "bool":
        return np.asarray([False, True])
    if dtype in FLOATS:
        return np.asarray(SPECIAL, jnp.dtype(dtype))
    info = np.iinfo(dtype)
    few = [info.min, info.min + 1, info.max, info.max - 1, info.max // 2 + 1, 0, 1, 2, 3, 7, 31]
    return np.asarray(few + ([] if info.min == 0 else [-1, -2, -7]), dtype)


def pairs(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    x = numbers(dtype)
    return np.repeat(x, len(x)), np.tile(x, len(x))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(
    "function",
    [lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge,
     lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor, lax.shift_left, lax.shift_right_logical,
     lax.shift_right_arithmetic],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_whole_numbers_wrap_as_in_jax(function: Callable[..., Any], dtype: str) -> None:
    compare(function, *pairs(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "function",
    [lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge],
    ids=lambda function: function.__name__,
)
def test_floats_are_the_same_bits(function: Callable[..., Any], dtype: str) -> None:
    compare(function, *pairs(dtype))


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, *FLOATS])
@pytest.mark.parametrize("function", [lax.neg, lax.abs, lax.sign, lax.bitwise_not, lambda x: lax.clamp(x[3], x, x[6])])
def test_signs_and_complements(function: Callable[..., Any], dtype: str) -> None:
    try:
        jax.eval_shape(function, numbers(dtype))
    except (TypeError, IndexError):
        pytest.skip("JAX has no such operation on this type")
    compare(function, numbers(dtype))


def small_exp2(x: jax.Array) -> jax.Array:
    """JAX's is exp(x log 2), which rounds more the larger x is; torch's does not."""
    return lax.exp2(jnp.clip(x, -4, 4))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("function", "ulps"),
    [(lax.exp, 4), (small_exp2, 4), (lax.expm1, 8), (lax.log, 4), (lax.log1p, 4), (lax.sin, 4), (lax.cos, 4),
     (lax.tanh, 8), (lax.logistic, 4), (lax.erf, 8), (lax.sqrt, 1), (lax.rsqrt, 4), (lax.cbrt, 8), (lax.floor, 0),
     (lax.tan, 8), (lax.asin, 8), (lax.acos, 8), (lax.atan, 4), (lax.sinh, 8), (lax.cosh, 8), (lax.erfc, 8),
     (lax.erf_inv, 16), (lambda x: lax.pow(x, x), 8), (lambda x: lax.pow(x, jnp.int32(3)), 8),
     (lambda x: lax.atan2(x, x[::-1]), 8), (lax.ceil, 0), (lax.is_finite, 0), (lax.square, 0),
     (lambda x: lax.integer_pow(x, 3), 0),
     (lambda x: lax.integer_pow(x, -2), 1), (lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), 0),
     (lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), 0)],
)  # fmt: skip
def test_functions_of_one_number(function: Callable[..., Any], ulps: int, dtype: str) -> None:
    compare(function, numbers(dtype), ulps=ulps, atol=1e-6 if ulps else 0)


@given(data=st.data())
@settings(max_examples=25, derandomize=True, database=None)
def test_shapes_types_and_scalars(data: st.DataObject) -> None:
    """A formula with literals on either side, over any shape, empty ones included."""
    dtype = data.draw(st.sampled_from(["int32", "uint32", "uint8", "float32"]))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    x = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 200, shape).astype(dtype)
    compare(lambda x: jnp.where((x + 3) * 5 > x, 7 - x, x * x), x)


def test_select_of_several_takes_the_case_that_is_named() -> None:
    which = np.asarray([0, 2, 1, 0], np.int32)
    compare(lambda which, x: lax.select_n(which, x, x + 1, x * 10), which, np.arange(4, dtype=np.float32))


def test_the_next_float() -> None:
    compare(lambda x: jnp.nextafter(x, jnp.inf), np.asarray([1.0, -1.0, 1e-3, 3.4e38], np.float32))
