"""The kernels' exponential and hyperbolic tangent against numpy in float64."""

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from llvmlite import ir

from distaff.backends.cpu.attention_math import exp2, tanh
from distaff.backends.cpu.jit import F32, I64, POINTER, VOID, Code, Value, compile_module, vector

LANES = 16


@cache
def compiled(function: Callable[[Code, Value], Value]) -> Callable[[np.ndarray], np.ndarray]:
    """The function over a float32 array whose length is a multiple of 16."""
    module = ir.Module("math")
    made = ir.Function(module, ir.FunctionType(VOID, [POINTER, POINTER, I64]), "apply")
    code = Code(made.append_basic_block("entry"))
    source, target, count = made.args

    def apply(i: Value) -> None:
        where = code.times(i, 4)
        value = function(code, code.read(vector(F32, LANES), source, where, align=4))
        code.write(value, target, where, align=4)

    code.loop(count, apply, step=LANES)
    code.ret_void()
    address = compile_module(module, ["apply"])["apply"]
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)

    def run(x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        call(x.ctypes.data, out.ctypes.data, len(x))
        return out

    return run


@pytest.mark.parametrize(
    ("function", "exact", "low", "high"),
    [(exp2, np.exp2, -126, 0), (exp2, np.exp2, 0, 127), (tanh, np.tanh, -0.7, 0.7), (tanh, np.tanh, -12, 12)],
)
def test_error_is_below_three_ulp(
    function: Callable[[Code, Value], Value], exact: Callable[[np.ndarray], np.ndarray], low: float, high: float
) -> None:
    x = np.linspace(low, high, 160_000).astype(np.float32)
    want = exact(x.astype(np.float64))
    ulp = np.spacing(np.abs(want).astype(np.float32))
    assert np.max(np.abs(compiled(function)(x) - want) / ulp) < 3


def test_special_values() -> None:
    x = np.array([0, -126, -126.01, -3.4e38, -np.inf, np.nan, 127, -1] * 2, np.float32)
    want = np.array([1, 2.0**-126, 0, 0, 0, np.nan, 2.0**127, 0.5] * 2, np.float32)
    np.testing.assert_array_equal(compiled(exp2)(x), want)
    x = np.array([0, 100, -100, np.inf, -np.inf, np.nan, 0, 0] * 2, np.float32)
    want = np.array([0, 1, -1, 1, -1, np.nan, 0, 0] * 2, np.float32)
    np.testing.assert_array_equal(compiled(tanh)(x), want)
