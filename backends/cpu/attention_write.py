"""Writes new keys and values into their pages."""

from collections.abc import Callable

from llvmlite import ir

from .attention_call import KernelSpec, Slot, address, index
from .attention_layout import item_bytes
from .attention_math import constant, largest, load, rounded
from .jit import I8, I16, I64, POINTER, VOID, Value, function, vector

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
    first = code.times(chunk, WRITE_TOKENS)
    last = code.plus(first, WRITE_TOKENS)

    def copy(source: Value, target: Callable[[Value], Value], scale: Value) -> None:
        """Of numbers with scales, the largest becomes 127 and `scale` is where the scale goes."""

        def read(h: Value) -> Value:
            return load(code, spec.dtype, 1, code.at(source, code.times(h, item_bytes(spec.dtype))))

        times: Value = None
        if layout.scaled:

            def size_of(h: Value, most: Value) -> list[Value]:
                return [largest(code, code.intrinsic("llvm.fabs.v1f32", most.type, read(h)), most)]

            (most,) = code.loop(layout.head_dim, size_of, [constant(_LEAST, 1)])
            code.write(code.fdiv(most, constant(_LARGEST, 1)), scale, align=4)
            times = code.fdiv(constant(_LARGEST, 1), most)

        def element(h: Value) -> None:
            value = read(h)
            if layout.scaled:
                near = code.intrinsic("llvm.roundeven.v1f32", value.type, code.fmul(value, times))
                code.write(code.fptosi(near, vector(I8, 1)), target(h), align=1)
            else:
                code.write(rounded(code, value, layout.dtype), target(h), align=size)

        code.loop(layout.head_dim, element)

    def write_row(row: Value) -> None:
        start, end = index(code, starts, row), index(code, starts, code.plus(row, 1))
        before = code.sub(index(code, lens, row), end)

        def write_head(head: Value, token: Value) -> None:
            position = code.plus(before, token)
            key, value = address(code, spec, context, row, head, position)
            value = code.at(value, code.times(code.srem(position, code.i64(layout.pair)), size))
            source = code.times(code.plus(code.times(token, spec.num_kv_heads), head), spec.head_bytes)

            def key_element(h: Value) -> Value:
                lane, part = (op(h, code.i64(layout.pair)) for op in (code.udiv, code.urem))
                return code.at(key, code.times(lane, layout.key_stride), code.times(part, size))

            scale = code.at(key, layout.number_elements * size)
            copy(code.at(code.read(POINTER, context, Slot.K), source), key_element, scale)
            copy(
                code.at(code.read(POINTER, context, Slot.V), source),
                lambda h: code.at(value, code.times(h, 4)),
                code.at(scale, 4 * layout.page),
            )
            # It meets the 0 of a query, and 0 * NaN is NaN, which whole numbers cannot be.
            if layout.key_width > layout.head_dim and not layout.scaled:
                code.write(ir.Constant(I16, 0), key_element(code.i64(layout.head_dim)))

        def write_token(token: Value) -> None:
            code.loop(spec.num_kv_heads, lambda head: write_head(head, token))

        code.loop(code.least(end, last), write_token, start=code.most(start, first))

    code.loop(num_rows, write_row)
    code.ret_void()
    return made
