"""Rows of fp32 or bfloat16, read in vectors, the last of which may be a part of one."""

from llvmlite import ir

from .attention_math import load, widened
from .jit import F32, I16, I32, I64, Code, Value, vector

LANES = 16
SIZES = {"float32": 4, "bfloat16": 2}


def whole_vectors(code: Code, width: Value) -> Value:
    """How many of a row's numbers are in whole vectors."""
    return code.times(code.sdiv(width, code.i64(LANES)), LANES)


def inside(code: Code, count: Value) -> Value:
    """The first `count` lanes."""
    lanes = ir.Constant(vector(I64, LANES), list(range(LANES)))
    return code.icmp_signed("<", lanes, code.splat(count, LANES))


def read(code: Code, dtype: str, source: Value, at: Value, inside: Value | None = None) -> Value:
    """Numbers `at` and following, as fp32; zeros outside a mask."""
    size = SIZES[dtype]
    where = code.at(source, code.times(at, size))
    if inside is None:
        return load(code, dtype, LANES, where)
    kind = vector(F32 if dtype == "float32" else I16, LANES)
    zeros = ir.Constant(kind, [0] * LANES)
    name = f"llvm.masked.load.v{LANES}{'f32' if dtype == 'float32' else 'i16'}.p0"
    return widened(code, code.intrinsic(name, kind, where, ir.Constant(I32, size), inside, zeros))
