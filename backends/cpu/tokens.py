"""Rounds activations to bytes: each token with a scale of its own, as `i8` products of matmul.py take them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from llvmlite import ir

from ..token_scales import LARGEST
from .attention_math import constant, largest, reduced
from .ffi import Buffer, Frame, handler, register
from .jit import F32, I8, I32, I64, POINTER, VOID, Code, Value, function, round_up, vector
from .rows import LANES, SIZES, inside, over_rows, read, rows_of_chunk, whole_vectors
from .tile import WORD

_ROUND = 1.5 * 2**23
"""Added to a smaller number, it leaves the nearest whole one in the lowest bits."""


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
    for dtype in SIZES:
        _emit(module, f"tokens_{dtype}", dtype)
    return module, [f"tokens_{dtype}" for dtype in SIZES]


@cache
def _targets() -> dict[str, str]:
    return register(*emitted())


def _emit(module: ir.Module, name: str, dtype: str) -> None:
    def handle(frame: Frame) -> None:
        code, x = frame.code, frame.argument(0)
        rows = code.least(x.size(0), code.sext(code.read(I32, frame.argument(1).data), I64))
        emit_rounding(frame, module, dtype, x, rows, frame.result(0).data, frame.result(1).data)

    handler(module, name, handle)


def emit_rounding(
    frame: Frame, module: ir.Module, dtype: str, x: Buffer, rows: Value, numbers: Value, scales: Value
) -> None:
    """Emits, into a handler of the module, what byte_tokens does with the first `rows` of x."""
    width = x.size(1)
    over_rows(frame, module, _chunk(module, dtype), (x.data, numbers, scales, width), rows, width)


def _chunk(module: ir.Module, dtype: str) -> ir.Function:
    """The loop body that rounds some consecutive tokens."""
    name = f"tokens_{dtype}.chunk"
    if name in module.globals:
        return module.globals[name]
    made, code = function(module, name, VOID, [POINTER, I64])
    job, chunk = made.args
    x, out, scales = (code.read(POINTER, job, 8 * at) for at in range(3))
    width = code.read(I64, job, 24)
    first, stop = rows_of_chunk(code, job, 4, chunk)
    whole = code.times(code.ceil_div(width, WORD), WORD)

    def one(row: Value) -> None:
        source = code.at(x, code.times(code.times(row, width), SIZES[dtype]))
        target, scale = code.at(out, code.times(row, whole)), code.at(scales, code.times(row, 4))
        _round_row(code, dtype, source, width, target, scale)

    code.loop(stop, one, start=first)
    code.ret_void()
    return made


def _round_row(code: Code, dtype: str, source: Value, width: Value, out: Value, scale: Value) -> None:
    """Of one token: its numbers and its scale."""
    whole = whole_vectors(code, width)
    mask = inside(code, code.sub(width, whole))

    def size(value: Value, most: Value) -> Value:
        return largest(code, code.intrinsic(f"llvm.fabs.v{LANES}f32", value.type, value), most)

    (most,) = code.loop(
        whole, lambda at, most: [size(read(code, dtype, source, at), most)], [constant(0.0, LANES)], step=LANES
    )
    most = reduced(code, size(read(code, dtype, source, whole, mask), most), largest_of=True)
    most = code.select(code.fcmp_ordered(">", most, ir.Constant(F32, 0.0)), most, ir.Constant(F32, 1.0))
    # Divisions as XLA makes them, for the bits of backends/quantized.py: by reciprocals.
    step = code.fmul(most, ir.Constant(F32, float(np.float32(1) / np.float32(LARGEST["int8"]))))
    code.write(step, scale, align=4)
    times = code.splat(code.fdiv(ir.Constant(F32, 1.0), step), LANES)

    def numbers(value: Value) -> Value:
        # The nearest whole number, 128 added, in the lowest byte of the sum.
        near = code.fadd(code.fmul(value, times), constant(_ROUND + 128, LANES))
        return code.trunc(code.bitcast(near, vector(I32, LANES)), vector(I8, LANES))

    def write(at: Value) -> None:
        code.write(numbers(read(code, dtype, source, at)), code.at(out, at), align=1)

    code.loop(whole, write, step=LANES)
    words = code.times(code.ceil_div(code.sub(width, whole), WORD), WORD)
    rest = numbers(read(code, dtype, source, whole, mask)), code.at(out, whole)
    code.intrinsic(f"llvm.masked.store.v{LANES}i8.p0", VOID, *rest, ir.Constant(I32, 1), inside(code, words))
