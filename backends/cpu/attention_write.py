"""Writes new keys and values into their pages."""

from llvmlite import ir

from .attention_call import KernelSpec, Slot, address, index
from .attention_math import load, rounded
from .jit import F32, I8, I32, I64, POINTER, VOID, Value, function, vector

WRITE_TOKENS = 32

_LARGEST, _LEAST = 127.0, 1e-30
"""What the largest number of a position becomes where numbers have scales, and what it is taken to be at least."""


def emit_write(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """The loop body that writes keys and values of some consecutive tokens."""
    made, code = function(module, "write", VOID, [POINTER, I64])
    context, chunk = made.args
    layout, size = spec.layout, spec.layout.item_bytes
    starts, lens = code.read(POINTER, context, Slot.STARTS), code.read(POINTER, context, Slot.LENS)
    num_rows = code.read(I64, context, Slot.NUM_ROWS)
    kind = ir.IntType(8 * size)
    first = code.times(chunk, WRITE_TOKENS)
    last = code.plus(first, WRITE_TOKENS)

    taken = code.stack(4 * layout.key_width)  # one key or value as it is stored, zeros behind it
    for behind in range(layout.head_dim * size, layout.key_width * size):
        code.write(ir.Constant(I8, 0), taken, behind)

    def take(source: Value, scale: Value) -> None:
        """Of numbers with scales, the largest becomes 127 and `scale` is where the scale goes."""
        value = load(code, spec.dtype, layout.head_dim, source)
        if layout.scaled:
            width = layout.head_dim
            sizes = code.intrinsic(f"llvm.fabs.v{width}f32", value.type, value)
            most = code.intrinsic(f"llvm.vector.reduce.fmax.v{width}f32", F32, sizes)
            most = code.select(code.fcmp_ordered(">", most, ir.Constant(F32, _LEAST)), most, ir.Constant(F32, _LEAST))
            code.write(code.fdiv(most, ir.Constant(F32, _LARGEST)), scale, align=4)
            times = code.splat(code.fdiv(ir.Constant(F32, _LARGEST), most), width)
            near = code.intrinsic(f"llvm.roundeven.v{width}f32", value.type, code.fmul(value, times))
            code.write(code.fptosi(near, vector(I8, width)), taken, align=1)
        else:
            code.write(rounded(code, value, layout.dtype), taken, align=size)

    def write_row(row: Value) -> None:
        start, end = index(code, starts, row), index(code, starts, code.plus(row, 1))
        before = code.sub(index(code, lens, row), end)

        def write_head(head: Value, token: Value) -> None:
            position = code.plus(before, token)
            key, value = address(code, spec, context, row, head, position)
            value = code.at(value, code.times(code.srem(position, code.i64(layout.pair)), size))
            source = code.times(code.plus(code.times(token, spec.num_kv_heads), head), spec.head_bytes)
            scale = code.at(key, layout.number_elements * size)

            def write_lane(lane: Value) -> None:
                word = code.read(I32, taken, code.times(lane, 4))
                code.write(word, code.at(key, code.times(lane, layout.key_stride)), align=4)

            take(code.at(code.read(POINTER, context, Slot.K), source), scale)
            # Zeros behind a key meet the 0 of a query, and 0 * NaN is NaN.
            code.loop(layout.key_width // layout.pair, write_lane)

            def write_number(h: Value) -> None:
                number = code.read(kind, taken, code.times(h, size))
                code.write(number, code.at(value, code.times(h, 4)), align=size)

            take(code.at(code.read(POINTER, context, Slot.V), source), code.at(scale, 4 * layout.page))
            code.loop(layout.head_dim, write_number)

        def write_token(token: Value) -> None:
            code.loop(spec.num_kv_heads, lambda head: write_head(head, token))

        code.loop(code.least(end, last), write_token, start=code.most(start, first))

    code.loop(num_rows, write_row)
    code.ret_void()
    return made
