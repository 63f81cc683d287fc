"""Rotary positions of queries and keys in one pass, where XLA makes four products, two joins and two conversions."""

from dataclasses import dataclass
from functools import cache

import jax
from jaxtyping import Array, Float
from llvmlite import ir

from .attention_math import load, rounded
from .ffi import Frame, handler, register
from .jit import F32, I64, POINTER, VOID, Value, function, vector
from .rows import SIZES, over_rows, rows_of_chunk


@dataclass(frozen=True)
class _Spec:
    """What a kernel is made for: the type, the heads' width, and how many angles each of them has."""

    dtype: str
    head_dim: int
    angles: int


def rotate(
    q: Float[Array, "T N H"], k: Float[Array, "T K H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"]]:
    """As Backend.rotate, of float32 or bfloat16; cosines and sines are fp32."""
    target = _target(_Spec(q.dtype.name, q.shape[-1], cos.shape[-1]))
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k)]
    turned, keys = jax.ffi.ffi_call(target, results)(q, k, cos, sin)
    return turned, keys


@cache
def _target(spec: _Spec) -> str:
    module = ir.Module("distaff_cpu_rotate")
    body = _chunk(module, spec)

    def handle(frame: Frame) -> None:
        code, q, k = frame.code, frame.argument(0), frame.argument(1)
        heads = q.size(1), k.size(1)
        arrays = [q, frame.result(0), k, frame.result(1), frame.argument(2), frame.argument(3)]
        values = (*(array.data for array in arrays), *heads)
        over_rows(frame, module, body, values, q.size(0), code.times(code.add(*heads), spec.head_dim))

    handler(module, "rotate", handle)
    return register(module, ["rotate"])["rotate"]


def _chunk(module: ir.Module, spec: _Spec) -> ir.Function:
    made, code = function(module, "rotate.chunk", VOID, [POINTER, I64])
    job, chunk = made.args
    *arrays, cos, sin = (code.read(POINTER, job, 8 * at) for at in range(6))
    heads = [code.read(I64, job, 8 * at) for at in (6, 7)]
    first, stop = rows_of_chunk(code, job, 8, chunk)
    size, half = SIZES[spec.dtype], spec.angles
    behind = spec.head_dim - 2 * half

    def one(token: Value) -> None:
        angles = vector(F32, half)
        where = code.times(token, 4 * half)
        c, s = (code.read(angles, code.at(each, where), align=4) for each in (cos, sin))
        for number, count in enumerate(heads):
            source, target = arrays[2 * number : 2 * number + 2]

            def turn(head: Value, source: Value = source, target: Value = target, count: Value = count) -> None:
                before = code.times(code.add(code.times(token, count), head), spec.head_dim * size)
                x, y = (load(code, spec.dtype, half, code.at(source, before, part * half * size)) for part in range(2))
                turned = code.fsub(code.fmul(x, c), code.fmul(y, s)), code.fadd(code.fmul(y, c), code.fmul(x, s))
                for part, value in enumerate(turned):
                    place = code.at(target, before, part * half * size)
                    code.write(rounded(code, value, spec.dtype), place, align=size)
                if behind:
                    rest = 2 * half * size
                    kept = code.read(vector(ir.IntType(8 * size), behind), source, before, rest, align=size)
                    code.write(kept, target, before, rest, align=size)

            code.loop(count, turn)

    code.loop(stop, one, start=first)
    code.ret_void()
    return made
