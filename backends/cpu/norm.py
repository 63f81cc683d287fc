"""RMSNorm in one pass over memory, where XLA makes two operations of it."""

from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
from jaxtyping import Array, Float
from llvmlite import ir

from .attention_math import constant, fma, reduced, rounded
from .ffi import Frame, handler, register
from .jit import F32, I32, I64, POINTER, VOID, Code, Value, function
from .rows import LANES, SIZES, inside, over_rows, read, rows_of_chunk, whole_vectors

_SUMS = 4
"""Sums of squares side by side, to hide the latency of each."""


@dataclass(frozen=True)
class _Spec:
    """What a kernel is made for: types of x and of the scale, and what is added to the scale and to the mean."""

    dtype: str
    scale_dtype: str
    offset: float
    epsilon: float


def rms_norm(x: Float[Array, "T D"], scale: Float[Array, "D"], *, offset: float, epsilon: float) -> Float[Array, "T D"]:
    """As Backend.rms_norm; x and scale are float32 or bfloat16. A row has the same bits in any batch."""
    target = _target(_Spec(x.dtype.name, scale.dtype.name, float(offset), float(epsilon)))
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(x.shape, x.dtype))(x, scale)


@cache
def _target(spec: _Spec) -> str:
    module = ir.Module("distaff_cpu_norm")
    body = _chunk(module, spec)

    def handle(frame: Frame) -> None:
        x = frame.argument(0)
        width = x.size(1)
        values = (x.data, frame.argument(1).data, frame.result(0).data, width)
        over_rows(frame, module, body, values, x.size(0), width)

    handler(module, "rms_norm", handle)
    return register(module, ["rms_norm"])["rms_norm"]


def _chunk(module: ir.Module, spec: _Spec) -> ir.Function:
    made, code = function(module, "rms_norm.chunk", VOID, [POINTER, I64])
    job, chunk = made.args
    x, scale, out = (code.read(POINTER, job, 8 * at) for at in range(3))
    width = code.read(I64, job, 24)
    first, stop = rows_of_chunk(code, job, 4, chunk)
    whole = whole_vectors(code, width)
    mask = inside(code, code.sub(width, whole))
    size = SIZES[spec.dtype]

    def one(row: Value) -> None:
        before = code.times(code.times(row, width), size)
        source, target = code.at(x, before), code.at(out, before)
        root = _root(code, spec, source, width, whole, mask)

        def scaled(at: Value, mask: Value | None = None) -> Value:
            factor = read(code, spec.scale_dtype, scale, at, mask)
            if spec.offset:
                factor = code.fadd(factor, constant(spec.offset, LANES))
            value = code.fmul(code.fmul(read(code, spec.dtype, source, at, mask), root), factor)
            return rounded(code, value, spec.dtype)

        def write(at: Value) -> None:
            code.write(scaled(at), code.at(target, code.times(at, size)), align=size)

        code.loop(whole, write, step=LANES)
        name = f"llvm.masked.store.v{LANES}{'f32' if spec.dtype == 'float32' else 'i16'}.p0"
        behind = code.at(target, code.times(whole, size))
        code.intrinsic(name, VOID, scaled(whole, mask), behind, ir.Constant(I32, size), mask)

    code.loop(stop, one, start=first)
    code.ret_void()
    return made


def _root(code: Code, spec: _Spec, source: Value, width: Value, whole: Value, mask: Value) -> Value:
    """sqrt(1 / (mean of the squares + epsilon)), in every lane."""

    def squares(at: Value, total: Value, mask: Value | None = None) -> Value:
        value = read(code, spec.dtype, source, at, mask)
        return fma(code, value, value, total)

    def several(at: Value, *sums: Value) -> list[Value]:
        return [squares(code.plus(at, number * LANES), total) for number, total in enumerate(sums)]

    block = LANES * _SUMS
    blocks = code.times(code.sdiv(width, code.i64(block)), block)
    sums = code.loop(blocks, several, [constant(0.0, LANES)] * _SUMS, step=block)
    total = sums[0]
    for other in sums[1:]:
        total = code.fadd(total, other)
    (total,) = code.loop(whole, lambda at, total: [squares(at, total)], [total], start=blocks, step=LANES)
    total = reduced(code, squares(whole, total, mask))
    mean = code.fdiv(total, code.sitofp(width, F32))
    inverse = code.fdiv(ir.Constant(F32, 1.0), code.fadd(mean, ir.Constant(F32, float(np.float32(spec.epsilon)))))
    return code.splat(code.intrinsic("llvm.sqrt.f32", F32, inverse), LANES)
