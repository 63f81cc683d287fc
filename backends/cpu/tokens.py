"""Rounds activations to bytes: each token with a scale of its own, as `i8` products of matmul.py take them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from llvmlite import ir

from ..token_scales import LARGEST
from .attention_math import constant, largest, load, reduced, widened
from .ffi import Frame, handler, register
from .jit import F32, I8, I16, I32, I64, POINTER, VOID, Code, Value, function, round_up, vector
from .matmul_tile import WORD
from .threads import parallel_for

_LANES = 16
_CHUNK = 1 << 15
"""Numbers of one chunk of the parallel loop: about 4 us."""
_ROUND = 1.5 * 2**23
"""Added to a smaller number, it leaves the nearest whole one in the lowest bits."""
_SIZES = {"float32": 4, "bfloat16": 2}


def byte_tokens(x: Float[Array, "T K"], count: Int[Array, ""]) -> tuple[UInt8[Array, "T K_whole"], Float[Array, "T"]]:
    """The first `count` tokens in bytes, 128 added, and the scales to multiply them with.

    Behind K come zeros up to a whole word of weights; tokens behind the first `count` come out arbitrary.
    """
    tokens, width = x.shape
    results = [
        jax.ShapeDtypeStruct((tokens, round_up(width, WORD)), jnp.uint8),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    ]
    numbers, scales = jax.ffi.ffi_call(_targets()[f"tokens_{x.dtype.name}"], results)(x, count)
    return numbers, scales


def emitted() -> tuple[ir.Module, list[str]]:
    """The kernels, and the names of their handlers."""
    module = ir.Module("distaff_cpu_tokens")
    for dtype in _SIZES:
        _emit(module, f"tokens_{dtype}", dtype)
    return module, [f"tokens_{dtype}" for dtype in _SIZES]


@cache
def _targets() -> dict[str, str]:
    return register(*emitted())


def _emit(module: ir.Module, name: str, dtype: str) -> None:
    fields = 6
    body, code = function(module, f"{name}.chunk", VOID, [POINTER, I64])
    job, chunk = body.args
    x, out, scales = (code.read(POINTER, job, 8 * at) for at in range(3))
    width, rows, wide = (code.read(I64, job, 8 * at) for at in range(3, fields))
    whole = code.times(code.ceil_div(width, WORD), WORD)
    first = code.times(chunk, wide)

    def one(row: Value) -> None:
        source = code.at(x, code.times(code.times(row, width), _SIZES[dtype]))
        _round_row(
            code, dtype, source, width, code.at(out, code.times(row, whole)), code.at(scales, code.times(row, 4))
        )

    code.loop(code.least(code.plus(first, wide), rows), one, start=first)
    code.ret_void()

    def handle(frame: Frame) -> None:
        code, x = frame.code, frame.argument(0)
        count = code.sext(code.read(I32, frame.argument(1).data), I64)
        rows, width = code.least(x.size(0), count), x.size(1)
        wide = code.most(code.sdiv(code.i64(_CHUNK), code.most(width, 1)), 1)
        job = code.stack(8 * fields)
        for at, value in enumerate((x.data, frame.result(0).data, frame.result(1).data, width, rows, wide)):
            code.write(value, job, 8 * at)
        code.call(parallel_for(module), [frame.pointer, code.ceil_div(rows, wide), code.address(body), job])

    handler(module, name, handle)


def _round_row(code: Code, dtype: str, source: Value, width: Value, out: Value, scale: Value) -> None:
    """Of one token: its numbers and its scale."""
    whole = code.times(code.sdiv(width, code.i64(_LANES)), _LANES)
    inside = _inside(code, code.sub(width, whole))

    def size(value: Value, most: Value) -> Value:
        return largest(code, code.intrinsic(f"llvm.fabs.v{_LANES}f32", value.type, value), most)

    (most,) = code.loop(
        whole, lambda at, most: [size(_read(code, dtype, source, at), most)], [constant(0.0, _LANES)], step=_LANES
    )
    most = reduced(code, size(_read(code, dtype, source, whole, inside), most), largest_of=True)
    most = code.select(code.fcmp_ordered(">", most, ir.Constant(F32, 0.0)), most, ir.Constant(F32, 1.0))
    # Divisions as XLA makes them, for the bits of backends/quantized.py: by reciprocals.
    step = code.fmul(most, ir.Constant(F32, float(np.float32(1) / np.float32(LARGEST["int8"]))))
    code.write(step, scale, align=4)
    times = code.splat(code.fdiv(ir.Constant(F32, 1.0), step), _LANES)

    def numbers(value: Value) -> Value:
        # The nearest whole number, 128 added, in the lowest byte of the sum.
        near = code.fadd(code.fmul(value, times), constant(_ROUND + 128, _LANES))
        return code.trunc(code.bitcast(near, vector(I32, _LANES)), vector(I8, _LANES))

    def write(at: Value) -> None:
        code.write(numbers(_read(code, dtype, source, at)), code.at(out, at), align=1)

    code.loop(whole, write, step=_LANES)
    words = code.times(code.ceil_div(code.sub(width, whole), WORD), WORD)
    rest = numbers(_read(code, dtype, source, whole, inside)), code.at(out, whole)
    code.intrinsic(f"llvm.masked.store.v{_LANES}i8.p0", VOID, *rest, ir.Constant(I32, 1), _inside(code, words))


def _inside(code: Code, count: Value) -> Value:
    """The first `count` lanes."""
    lanes = ir.Constant(vector(I64, _LANES), list(range(_LANES)))
    return code.icmp_signed("<", lanes, code.splat(count, _LANES))


def _read(code: Code, dtype: str, source: Value, at: Value, inside: Value | None = None) -> Value:
    """Numbers `at` and following, as fp32; zeros outside a mask."""
    size = _SIZES[dtype]
    where = code.at(source, code.times(at, size))
    if inside is None:
        return load(code, dtype, _LANES, where)
    kind = vector(F32 if dtype == "float32" else I16, _LANES)
    zeros = ir.Constant(kind, [0] * _LANES)
    name = f"llvm.masked.load.v{_LANES}{'f32' if dtype == 'float32' else 'i16'}.p0"
    return widened(code, code.intrinsic(name, kind, where, ir.Constant(I32, size), inside, zeros))
