"""The custom call for ragged paged attention: writes new keys and values into their pages, then attends."""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from .attention_bytes import write_query
from .attention_call import CONTEXT_BYTES, KernelSpec, Slot, address, index
from .attention_layout import LANES, item_bytes
from .attention_math import LOG2_E, constant, load, reduced, rounded
from .attention_shape import BLOCK, CHUNKS
from .attention_softmax import LOWEST
from .attention_tile import MAX_ROWS, emit_tile
from .attention_write import emit_write, emit_write_one, writes_itself
from .ffi import Frame, handler
from .jit import F32, I8, I32, I64, POINTER, VOID, Code, Value, function, vector
from .threads import parallel_for

_NEIGHBOURS, _ENOUGH_CHUNKS = 4, 32
"""Up to 4 items, as long as 32 pieces of work are left, are claimed at once: one takes 1 to 3 us."""

_WRITE_TOKENS = 32
"""Tokens that are written as one piece of work."""

_FETCH_AHEAD = 128
"""Positions between keys in use and those being fetched. 32 rows of 256 positions took 9.0 ms with 64, 11.1 without;
from large pages 128 are 2 % faster again."""


def emit(module: ir.Module, name: str, spec: KernelSpec) -> None:
    """Adds the custom call `name` to the module.

    Operands: q [T, N, H], k and v [T, K, H], cache [L, P, K, elements], layer [], page_table [B, pages],
    query_starts [B+1], kv_lens [B], and sinks [N] in fp32 if the spec has them. Results: out [T, N, H], cache.
    """
    write, attend = emit_write(module, spec), _attend(module, spec)

    def body(frame: Frame) -> None:
        code, context = frame.code, frame.code.stack(CONTEXT_BYTES)
        q, table, starts, out = frame.argument(0), frame.argument(5), frame.argument(6).data, frame.result(0).data
        num_rows = table.size(0)
        layer = code.sext(code.read(I32, frame.argument(4).data), I64)
        slabs = code.times(code.times(layer, frame.argument(3).size(1)), spec.num_kv_heads)
        layer_start = code.times(slabs, spec.layout.elements * spec.layout.item_bytes)
        for slot, value in (
            (Slot.Q, q.data),
            (Slot.K, frame.argument(1).data),
            (Slot.V, frame.argument(2).data),
            (Slot.OUT, out),
            (Slot.TABLE, table.data),
            (Slot.STARTS, starts),
            (Slot.LENS, frame.argument(7).data),
            (Slot.LAYER, code.at(frame.result(1).data, layer_start)),
            (Slot.WIDTH, table.size(1)),
            (Slot.NUM_ROWS, num_rows),
        ):
            code.write(value, context, slot)
        if spec.sinks:
            code.write(frame.argument(8).data, context, Slot.SINKS)

        total = index(code, starts, num_rows)
        token_bytes = spec.num_kv_heads * spec.tile.groups * spec.head_bytes
        padding = code.times(code.sub(q.size(0), total), token_bytes)
        nothing = ir.Constant(I8, 0), padding, ir.Constant(ir.IntType(1), 0)
        code.intrinsic("llvm.memset.p0.i64", VOID, code.at(out, code.times(total, token_bytes)), *nothing)

        run = parallel_for(module)
        # Where all rows have one token there is next to nothing to write: not worth another thread.
        span = code.select(code.icmp_signed(">", total, num_rows), code.i64(_WRITE_TOKENS), code.most(total, 1))
        code.write(span, context, Slot.SPAN)
        code.call(run, [frame.pointer, code.ceil_div(total, span), code.address(write), context])
        most_blocks = code.plus(num_rows, code.sdiv(total, code.i64(spec.item_tokens)))
        blocks = code.intrinsic("malloc", POINTER, code.times(most_blocks, 8))
        code.write(blocks, context, Slot.BLOCKS)
        num_blocks = _list_blocks(code, spec, starts, num_rows, blocks)
        num_items = code.times(num_blocks, spec.num_kv_heads)
        grain = code.least(code.most(code.sdiv(num_items, code.i64(_ENOUGH_CHUNKS)), 1), _NEIGHBOURS)
        code.write(num_items, context, Slot.NUM_ITEMS)
        code.write(grain, context, Slot.GRAIN)
        code.call(run, [frame.pointer, code.ceil_div(num_items, grain), code.address(attend), context])
        code.intrinsic("free", VOID, blocks)

    handler(module, name, body)


def _list_blocks(code: Code, spec: KernelSpec, starts: Value, num_rows: Value, blocks: Value) -> Value:
    """Lists (row, number of the block in it) for all blocks of `item_tokens` queries; returns how many they are.

    The last come first: chunks of prompts stand behind the rows that decode, and their last queries see most keys,
    so the longest items do not end the loop.
    """

    def add_row(reverse: Value, count: Value) -> list[Value]:
        row = code.sub(code.sub(num_rows, code.i64(1)), reverse)
        length = code.sub(index(code, starts, code.plus(row, 1)), index(code, starts, row))
        row_blocks = code.ceil_div(length, spec.item_tokens)

        def add_block(i: Value) -> None:
            entry = code.at(blocks, code.times(code.plus(count, i), 8))
            code.write(code.trunc(row, I32), entry, align=4)
            code.write(code.trunc(code.sub(code.sub(row_blocks, code.i64(1)), i), I32), entry, 4, align=4)

        code.loop(row_blocks, add_block)
        return [code.plus(count, row_blocks)]

    return code.loop(num_rows, add_row, [code.i64(0)])[0]


@dataclass(frozen=True)
class _Item:
    """One work item: `num_tokens` queries of a row from `token` on, the first at `position`, for one kv head.

    They see keys from `begin` to `end`, both rounded to multiples of LANES. `writes`: their own as well.
    """

    context: Value
    row: Value
    head: Value
    token: Value
    position: Value
    num_tokens: Value
    begin: Value
    end: Value
    writes: Value


@dataclass(frozen=True)
class _Scratch:
    """fp32 memory of one item, and addresses of chunks of keys and values; see Tile."""

    queries: Value
    out: Value
    tops: Value
    totals: Value
    keys: Value
    values: Value
    later_keys: Value
    later_values: Value

    @classmethod
    def of(cls, code: Code, spec: KernelSpec) -> "_Scratch":
        rows = spec.item_tokens * spec.tile.groups
        widths = spec.layout.key_width, spec.layout.value_width, 1, LANES
        return cls(*(code.stack(4 * rows * width) for width in widths), *(code.stack(8 * CHUNKS) for _ in range(4)))


def _attend(module: ir.Module, spec: KernelSpec) -> ir.Function:
    """The loop body for some consecutive items: the blocks of `_list_blocks`, kv heads innermost."""
    tiles = [emit_tile(module, spec.tile, rows) for rows in range(1, MAX_ROWS + 1)]
    write_one = emit_write_one(module, spec)
    made, code = function(module, "attend", VOID, [POINTER, I64])
    context, chunk = made.args
    scratch = _Scratch.of(code, spec)
    first = code.times(chunk, code.read(I64, context, Slot.GRAIN))
    stop = code.least(code.plus(first, code.read(I64, context, Slot.GRAIN)), code.read(I64, context, Slot.NUM_ITEMS))

    # Behind the last item of these come those that this thread takes next (threads.py).
    last = code.sub(code.read(I64, context, Slot.NUM_ITEMS), code.i64(1))

    def attend_item(number: Value) -> None:
        item = _item(code, spec, context, number)
        following = _item(code, spec, context, code.least(code.plus(number, 1), last))
        with code.if_then(item.writes):
            code.call(write_one, [context, item.row, item.head, item.token, item.position])
        _start(code, spec, item, scratch)
        _attend_item(code, spec, tiles, scratch, item, following)
        _finish(code, spec, item, scratch)

    code.loop(stop, attend_item, start=first)
    code.ret_void()
    return made


def _attend_item(
    code: Code, spec: KernelSpec, tiles: list[ir.Function], scratch: _Scratch, item: _Item, following: _Item
) -> None:
    """Runs an item's queries, cut into tiles of almost one size, over its blocks of keys."""
    num_rows = code.times(item.num_tokens, spec.tile.groups)
    num_tiles = code.ceil_div(num_rows, MAX_ROWS)
    tile_rows, wider = (op(num_rows, num_tiles) for op in (code.sdiv, code.srem))

    def attend_block(block: Value) -> None:
        start = code.times(block, BLOCK)
        _locate(code, spec, scratch, item, following, start)
        position = code.sub(item.position, start)

        def attend_tile(tile: Value) -> None:
            row = code.plus(code.times(tile, tile_rows), code.least(tile, wider))
            size = code.plus(tile_rows, code.zext(code.icmp_signed("<", tile, wider), I64))
            # The first tile fetches; to the others it is all there, and they ask for what they have.
            leads = code.icmp_signed("==", tile, code.i64(0))
            later_keys = code.select(leads, scratch.later_keys, scratch.keys)
            later_values = code.select(leads, scratch.later_values, scratch.values)
            memory = scratch.queries, scratch.out, scratch.tops, scratch.totals, scratch.keys, scratch.values
            after = code.append_basic_block("after")
            choice = code.switch(size, after)
            for rows, tile_function in enumerate(tiles, start=1):
                case = code.append_basic_block(f"rows{rows}")
                choice.add_case(code.i64(rows), case)
                code.position_at_end(case)
                code.call(tile_function, [*memory, later_keys, later_values, row, position])
                code.branch(after)
            code.position_at_end(after)

        code.loop(num_tiles, attend_tile)

    code.loop(code.ceil_div(item.end, BLOCK), attend_block, start=code.sdiv(item.begin, code.i64(BLOCK)))


def _locate(code: Code, spec: KernelSpec, scratch: _Scratch, item: _Item, following: _Item, start: Value) -> None:
    """Fills in the addresses of a block's chunks, and of those to fetch: of the same item or else the following."""

    def locate(chunk: Value) -> None:
        position = code.plus(start, code.times(chunk, LANES))
        later = code.plus(position, _FETCH_AHEAD)
        beyond = code.icmp_signed(">=", later, item.end)
        later = code.select(beyond, code.plus(code.sub(later, item.end), following.begin), later)
        row, head, end = (
            code.select(beyond, theirs, ours)
            for theirs, ours in ((following.row, item.row), (following.head, item.head), (following.end, item.end))
        )
        later = code.least(later, code.sub(end, code.i64(LANES)))
        addresses = (
            *address(code, spec, item.context, item.row, item.head, position),
            *address(code, spec, item.context, row, head, later),
        )
        arrays = scratch.keys, scratch.values, scratch.later_keys, scratch.later_values
        for where, array in zip(addresses, arrays, strict=True):
            code.write(where, array, code.times(chunk, 8))

    begin, end = code.most(item.begin, start), code.least(item.end, code.plus(start, BLOCK))
    begin, end = (code.sdiv(code.sub(x, start), code.i64(LANES)) for x in (begin, end))
    code.loop(end, locate, start=begin)


def _item(code: Code, spec: KernelSpec, context: Value, number: Value) -> _Item:
    heads = code.i64(spec.num_kv_heads)
    entry = code.at(code.read(POINTER, context, Slot.BLOCKS), code.times(code.sdiv(number, heads), 8))
    row, block = index(code, entry, code.i64(0)), index(code, entry, code.i64(1))
    starts, lens = code.read(POINTER, context, Slot.STARTS), code.read(POINTER, context, Slot.LENS)
    first, last = index(code, starts, row), index(code, starts, code.plus(row, 1))
    token = code.plus(first, code.times(block, spec.item_tokens))
    position = code.sub(index(code, lens, row), code.sub(last, token))
    writes = writes_itself(code, spec, code.sub(last, first), position)
    num_tokens = code.least(code.sub(last, token), spec.item_tokens)
    begin = code.i64(0)
    if spec.tile.window is not None:  # pages behind the window may be gone from the table
        begin = code.most(code.plus(position, 1 - spec.tile.window), 0)
        begin = code.times(code.sdiv(begin, code.i64(LANES)), LANES)
    end = code.times(code.ceil_div(code.plus(position, num_tokens), LANES), LANES)
    return _Item(context, row, code.srem(number, heads), token, position, num_tokens, begin, end, writes)


def _each_row(code: Code, spec: KernelSpec, item: _Item, body: Callable[[Value, Value, Value], None]) -> None:
    """Calls body(row, offset in bytes in q and out, query head) for the rows of an item."""
    groups = spec.tile.groups
    num_heads = groups * spec.num_kv_heads

    def visit(row: Value) -> None:
        token = code.plus(item.token, code.sdiv(row, code.i64(groups)))
        head = code.plus(code.times(item.head, groups), code.srem(row, code.i64(groups)))
        body(row, code.times(code.plus(code.times(token, num_heads), head), spec.head_bytes), head)

    code.loop(code.times(item.num_tokens, groups), visit)


def _start(code: Code, spec: KernelSpec, item: _Item, scratch: _Scratch) -> None:
    """Copies an item's queries to scratch, as fp32, and sets its outputs, maxima and totals."""
    layout = spec.layout

    def start_row(row: Value, where: Value, head: Value) -> None:
        source = code.at(code.read(POINTER, item.context, Slot.Q), where)
        target = code.at(scratch.queries, code.times(row, 4 * layout.key_width))
        if spec.tile.in_bytes:
            write_query(code, spec.tile, load(code, spec.dtype, layout.head_dim, source), target)
        else:
            code.write(load(code, spec.dtype, layout.head_dim, source), target, align=4)
            for behind in range(layout.head_dim, layout.key_width):
                code.write(ir.Constant(F32, 0.0), target, 4 * behind)
        code.write(
            constant(0.0, layout.value_width), code.at(scratch.out, code.times(row, 4 * layout.value_width)), align=4
        )
        total = constant(0.0, LANES)
        top = ir.Constant(F32, LOWEST)
        if spec.sinks:
            top = code.read(F32, code.read(POINTER, item.context, Slot.SINKS), code.times(head, 4), align=4)
            top = code.fmul(top, ir.Constant(F32, LOG2_E))
            total = ir.Constant(vector(F32, LANES), [1.0] + [0.0] * (LANES - 1))
        code.write(top, scratch.tops, code.times(row, 4))
        code.write(total, scratch.totals, code.times(row, 4 * LANES), align=4)

    _each_row(code, spec, item, start_row)


def _finish(code: Code, spec: KernelSpec, item: _Item, scratch: _Scratch) -> None:
    """Divides by the totals and stores the output."""
    layout = spec.layout

    def finish_row(row: Value, where: Value, head: Value) -> None:
        total = reduced(code, code.read(vector(F32, LANES), scratch.totals, code.times(row, 4 * LANES), align=4))
        share = code.splat(code.fdiv(ir.Constant(F32, 1.0), total), layout.head_dim)
        values = code.read(share.type, scratch.out, code.times(row, 4 * layout.value_width), align=4)
        values = rounded(code, code.fmul(values, share), spec.dtype)
        code.write(values, code.at(code.read(POINTER, item.context, Slot.OUT), where), align=item_bytes(spec.dtype))

    _each_row(code, spec, item, finish_row)
