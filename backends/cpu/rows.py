"""Rows of fp32 or bfloat16: a parallel loop over them, and vectors of their numbers, the last of which may be short."""

from collections.abc import Sequence

from llvmlite import ir

from .attention_math import load, widened
from .ffi import Frame
from .jit import F32, I16, I32, I64, Code, Value, vector
from .threads import parallel_for

LANES = 16
SIZES = {"float32": 4, "bfloat16": 2}
_CHUNK = 1 << 15
"""Numbers of one chunk of the parallel loop: 3 to 4 us."""


def over_rows(
    frame: Frame, module: ir.Module, body: ir.Function, values: Sequence[Value], rows: Value, width: Value
) -> None:
    """Emits, into a handler of the module, a parallel loop over rows of `width` numbers, some to a chunk. The body
    finds `values` in its context, and behind them what rows_of_chunk reads."""
    code = frame.code
    each = code.most(code.sdiv(code.i64(_CHUNK), code.most(width, 1)), 1)
    words = (*values, rows, each)
    context = code.stack(8 * len(words))
    for at, word in enumerate(words):
        code.write(word, context, 8 * at)
    code.call(parallel_for(module), [frame.pointer, code.ceil_div(rows, each), code.address(body), context])


def rows_of_chunk(code: Code, context: Value, num_values: int, chunk: Value) -> tuple[Value, Value]:
    """The first row of a chunk of over_rows, and the one behind its last."""
    rows, each = (code.read(I64, context, 8 * at) for at in (num_values, num_values + 1))
    first = code.times(chunk, each)
    return first, code.least(code.plus(first, each), rows)


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
