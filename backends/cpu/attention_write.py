"""Writes new keys and values into their pages.

Sixteen positions at a time, where so many new ones fill a vector's lanes: they are rounded one after the other, and
turned in registers. A row of one token is written by the items that attend for it, which need its page anyway; unless
it fills that page, which other rows of the step may read then.
"""

from llvmlite import ir

from .attention_call import KernelSpec, Slot, address, index
from .attention_layout import LANES
from .attention_math import load, rounded
from .jit import F32, I8, I32, I64, POINTER, VOID, Code, Value, function, round_up, vector

_LARGEST, _LEAST = 127.0, 1e-30
"""What the largest number of a position becomes where numbers have scales, and what it is taken to be at least."""

_WORDS = vector(I32, LANES)


def emit_write(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """The loop body that writes keys and values of `Slot.SPAN` consecutive tokens, but for those that items write.

    Positions that belong together, LANES of them, are written with the first that is new.
    """
    one, many = emit_write_one(module, spec), _emit_write_many(module, spec)
    made, code = function(module, "write", VOID, [POINTER, I64])
    context, chunk = made.args
    starts, lens = code.read(POINTER, context, Slot.STARTS), code.read(POINTER, context, Slot.LENS)
    span = code.read(I64, context, Slot.SPAN)
    first = code.mul(chunk, span)
    last = code.add(first, span)

    def write_row(row: Value) -> None:
        start, end = index(code, starts, row), index(code, starts, code.plus(row, 1))
        before = code.sub(index(code, lens, row), end)

        def whole(token: Value) -> Value:
            """The token of the first position from this one's on that is a multiple of LANES, or the row's end."""
            return code.least(code.sub(code.times(code.ceil_div(code.add(before, token), LANES), LANES), before), end)

        def write(function: ir.Function, token: Value) -> None:
            position = code.add(before, token)

            def one_head(head: Value) -> None:
                code.call(function, [context, row, head, token, position])

            code.loop(spec.num_kv_heads, one_head)

        inside = code.and_(code.icmp_signed("<", start, last), code.icmp_signed(">", end, first))
        apart = writes_itself(code, spec, code.sub(end, start), code.add(before, start))
        with code.if_then(code.and_(inside, code.not_(apart))):
            begin = code.select(code.icmp_signed(">", first, start), whole(first), start)
            stop = code.select(code.icmp_signed("<", last, end), whole(last), end)
            aligned = code.least(whole(begin), stop)
            rest = code.sub(stop, code.urem(code.sub(stop, aligned), code.i64(LANES)))
            code.loop(aligned, lambda token: write(one, token), start=begin)
            code.loop(rest, lambda token: write(many, token), start=aligned, step=LANES)
            code.loop(stop, lambda token: write(one, token), start=rest)

    code.loop(code.read(I64, context, Slot.NUM_ROWS), write_row)
    code.ret_void()
    return made


def writes_itself(code: Code, spec: KernelSpec, length: Value, position: Value) -> Value:
    """Whether a row of so many tokens, the first at `position`, is written by its items."""
    left = code.urem(code.plus(position, 1), code.i64(spec.layout.page))
    single, unfilled = code.icmp_signed("==", length, code.i64(1)), code.icmp_signed("!=", left, code.i64(0))
    return code.and_(single, unfilled)


def emit_write_one(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """write.one(context, row, kv head, token, position)"""
    name = "write.one"
    if name in module.globals:
        return module.globals[name]
    made, code = function(module, name, VOID, [POINTER] + [I64] * 4)
    context, row, head, token, position = made.args
    layout, bits = spec.layout, 8 * spec.layout.item_bytes
    key, value = address(code, spec, context, row, head, position)
    source = code.times(code.plus(code.times(token, spec.num_kv_heads), head), spec.head_bytes)
    scale = code.at(key, layout.number_elements * layout.item_bytes)

    taken = _scratch(code, spec, 1)
    _take(code, spec, code.at(code.read(POINTER, context, Slot.K), source), taken, scale)

    def write_lane(lane: Value) -> None:
        word = code.read(I32, taken, code.times(lane, 4))
        code.write(word, code.at(key, code.times(lane, layout.key_stride)), align=4)

    code.loop(layout.key_width // layout.pair, write_lane)

    _take(code, spec, code.at(code.read(POINTER, context, Slot.V), source), taken, code.at(scale, 4 * layout.page))
    words = vector(I32, layout.head_dim)
    number = _as_words(code, spec, taken)
    if layout.pair > 1:  # the others of these lanes stay
        shift = code.trunc(code.times(code.urem(position, code.i64(layout.pair)), bits), I32)
        others = code.not_(code.splat(code.shl(ir.Constant(I32, 2**bits - 1), shift), layout.head_dim))
        number = code.shl(number, code.splat(shift, layout.head_dim))
        number = code.or_(code.and_(code.read(words, value, align=4), others), number)
    code.write(number, value, align=4)
    code.ret_void()
    return made


def _emit_write_many(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """As write.one, of LANES tokens, the position of the first being a multiple of that."""
    made, code = function(module, "write.many", VOID, [POINTER] + [I64] * 4)
    context, row, head, token, position = made.args
    layout, size = spec.layout, spec.layout.item_bytes
    key, value = address(code, spec, context, row, head, position)
    source = code.times(code.plus(code.times(token, spec.num_kv_heads), head), spec.head_bytes)
    scale = code.at(key, layout.number_elements * size)
    taken, width = _scratch(code, spec, LANES), _width(spec)

    def take(slot: int, scales: Value) -> None:
        first = code.at(code.read(POINTER, context, slot), source)

        def one(number: Value) -> None:
            from_there = code.at(first, code.times(number, spec.num_kv_heads * spec.head_bytes))
            to = code.at(taken, code.times(number, width))
            _take(code, spec, from_there, to, code.at(scales, code.times(number, 4)))

        code.loop(LANES, one)

    take(Slot.K, scale)
    num_words = layout.key_width // layout.pair
    for word in range(0, num_words, LANES):
        rows = [code.read(_WORDS, taken, number * width + 4 * word, align=4) for number in range(LANES)]
        for number, column in enumerate(_turned(code, rows)[: num_words - word]):
            code.write(column, key, (word + number) * layout.key_stride, align=4)

    take(Slot.V, code.at(scale, 4 * layout.page))
    for lane in range(LANES // layout.pair):
        joined = None
        for number in range(layout.pair):
            part = _as_words(code, spec, code.at(taken, (lane * layout.pair + number) * width))
            part = code.shl(part, ir.Constant(part.type, [8 * size * number] * layout.head_dim))
            joined = part if joined is None else code.or_(joined, part)
        code.write(joined, value, lane * layout.value_stride, align=4)
    code.ret_void()
    return made


def _width(spec: KernelSpec) -> int:
    """Bytes from one position to the next in the scratch: whole vectors."""
    return round_up(spec.layout.key_width * spec.layout.item_bytes, 4 * LANES)


def _scratch(code: Code, spec: KernelSpec, positions: int) -> Value:
    """Keys or values of some positions as they are stored. Zeros stand behind a key: they meet the 0 of a query, and
    0 * NaN is NaN."""
    taken, size = code.stack(positions * _width(spec)), spec.layout.item_bytes
    for number in range(positions):
        for behind in range(spec.layout.head_dim * size, spec.layout.key_width * size):
            code.write(ir.Constant(I8, 0), taken, number * _width(spec) + behind)
    return taken


def _take(code: Code, spec: KernelSpec, source: Value, target: Value, scale: Value) -> None:
    """Puts a position's numbers, as they are stored, at `target`; where they have scales, the largest becomes 127 and
    `scale` is where the scale goes."""
    layout, width = spec.layout, spec.layout.head_dim
    value = load(code, spec.dtype, width, source)
    if not layout.scaled:
        code.write(rounded(code, value, layout.dtype), target, align=layout.item_bytes)
        return
    sizes = code.intrinsic(f"llvm.fabs.v{width}f32", value.type, value)
    most = code.intrinsic(f"llvm.vector.reduce.fmax.v{width}f32", F32, sizes)
    most = code.select(code.fcmp_ordered(">", most, ir.Constant(F32, _LEAST)), most, ir.Constant(F32, _LEAST))
    code.write(code.fdiv(most, ir.Constant(F32, _LARGEST)), scale, align=4)
    times = code.splat(code.fdiv(ir.Constant(F32, _LARGEST), most), width)
    near = code.intrinsic(f"llvm.roundeven.v{width}f32", value.type, code.fmul(value, times))
    code.write(code.fptosi(near, vector(I8, width)), target, align=1)


def _as_words(code: Code, spec: KernelSpec, taken: Value) -> Value:
    """A position's numbers, each in the lowest bits of a word."""
    size, width = spec.layout.item_bytes, spec.layout.head_dim
    numbers = code.read(vector(ir.IntType(8 * size), width), taken, align=size)
    return code.zext(numbers, vector(I32, width)) if size < 4 else numbers


def _turned(code: Code, rows: list[Value]) -> list[Value]:
    """The columns of LANES vectors: rows and lanes change places, one bit of their numbers after the other."""
    rows = list(rows)
    bit = 1
    while bit < LANES:
        kept = [lane if not lane & bit else LANES + lane - bit for lane in range(LANES)]
        moved = [lane + bit if not lane & bit else LANES + lane for lane in range(LANES)]
        for number in range(LANES):
            if not number & bit:
                pair = rows[number], rows[number + bit]
                rows[number], rows[number + bit] = (
                    code.shuffle_vector(*pair, ir.Constant(_WORDS, lanes)) for lanes in (kept, moved)
                )
        bit *= 2
    return rows
