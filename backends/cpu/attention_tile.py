"""Attention of a few queries over one block of keys: scores, softmax and weighted values, in fp32 registers.

Arithmetic is fp32 whatever is stored: Emerald Rapids does 180 GFLOP/s per core in fp32 and 90 in dot products of
bfloat16, and widening is shared by all queries of a tile. Caches of bytes alone are multiplied as they lie, where the
processor can (attention_bytes.py).

Every query takes the same operations in the same order wherever it stands: keys come in blocks at multiples of
`BLOCK` positions; each score and each output value has one accumulator, which runs through its products in ascending
order; a key that a query does not see adds exactly 0. So decoding, chunks of any size and neighbours give the same
bits.
"""

from llvmlite import ir

from .attention_bytes import byte_scores, byte_values
from .attention_layout import LANES, PageLayout
from .attention_math import constant, fma
from .attention_shape import BLOCK, Tile, TileSpec
from .attention_softmax import ABREAST, emit_softmax
from .jit import F32, I32, I64, POINTER, VOID, Code, Value, features, function, vector

MAX_ROWS, _MAX_VECTORS = (6, 4) if "avx512f" in features() else (2, 2)
"""Accumulators of a tile: rows x vectors. They fill the registers, with those for one operand and its partner."""

_FLOATS = vector(F32, LANES)


def emit_tile(module: ir.Module, spec: TileSpec, rows: int) -> ir.Function:
    """The function that brings `rows` rows of an item up to date with one block."""
    made, code = function(module, f"tile{rows}", VOID, [POINTER] * 8 + [I64] * 2)
    tile = Tile(*made.args)
    first = code.plus(tile.position, code.sdiv(tile.row, code.i64(spec.groups)))
    last = code.plus(tile.position, code.sdiv(code.plus(tile.row, rows - 1), code.i64(spec.groups)))
    end = code.least(code.plus(last, 1), BLOCK)
    begin = code.i64(0) if spec.window is None else code.most(code.plus(first, 1 - spec.window), 0)
    chunk = code.sdiv(begin, code.i64(LANES))
    with code.if_then(code.icmp_signed(">=", begin, end)):
        code.ret_void()
    end_chunk = code.ceil_div(end, LANES)
    scores, factors, mosts = (code.stack(4 * rows * width) for width in (BLOCK, 1, LANES))

    (byte_scores if spec.in_bytes else _scores)(code, spec, tile, rows, scores, chunk, end_chunk)

    def weigh(i: Value, count: int = ABREAST) -> None:
        row = code.plus(tile.row, i)
        arrays = [
            code.at(array, code.times(number, size))
            for array, number, size in (
                (scores, i, BLOCK * 4),
                (factors, i, 4),
                (mosts, i, LANES * 4),
                (tile.tops, row, 4),
                (tile.totals, row, LANES * 4),
            )
        ]
        code.call(emit_softmax(module, spec, count), [*arrays, tile.keys, chunk, end_chunk, tile.position, row])

    together = rows - rows % ABREAST
    code.loop(together, weigh, step=ABREAST)
    for i in range(together, rows):
        weigh(code.i64(i), 1)
    if spec.in_bytes:
        byte_values(code, spec, tile, rows, scores, mosts, factors, chunk, end_chunk)
        code.ret_void()
        return made
    vectors = spec.layout.value_width // LANES
    num_parts = -(-vectors // _MAX_VECTORS)
    for part in range(num_parts):
        columns = range(vectors * part // num_parts, vectors * (part + 1) // num_parts)
        _weighted_values(code, spec, tile, rows, columns, scores, factors, chunk, end)
    code.ret_void()
    return made


def _scores(code: Code, spec: TileSpec, tile: Tile, rows: int, scores: Value, chunk: Value, end_chunk: Value) -> None:
    """Writes the products of queries and keys, [rows, BLOCK] from the first to the last chunk."""
    layout = spec.layout
    row_bytes = 4 * layout.key_width
    queries = code.at(tile.queries, code.times(tile.row, row_bytes))

    def multiply(chunk: Value, width: int) -> None:
        keys, later = (
            [code.read(POINTER, array, code.times(code.plus(chunk, c), 8)) for c in range(width)]
            for array in (tile.keys, tile.later_keys)
        )

        def step(lane: Value, *sums: Value) -> list[Value]:
            updated, where = list(sums), code.times(lane, layout.key_stride)
            for address in later:
                code.prefetch(code.at(address, where))
            for part in range(layout.pair):
                vectors = [widen(code, layout, part, key, where) for key in keys]
                for i in range(rows):
                    query = code.read(F32, queries, i * row_bytes + 4 * part, code.times(lane, 4 * layout.pair))
                    query = code.splat(query, LANES)
                    for c in range(width):
                        updated[i * width + c] = fma(code, query, vectors[c], updated[i * width + c])
            return updated

        sums = code.loop(layout.key_width // layout.pair, step, [constant(0.0, LANES)] * (rows * width))
        for c in range(width):
            where = code.times(code.plus(chunk, c), LANES * 4)
            scale = code.read(_FLOATS, keys[c], layout.number_elements, align=4) if layout.scaled else None
            for i in range(rows):
                score = sums[i * width + c]
                score = score if scale is None else code.fmul(score, scale)
                code.write(score, scores, i * BLOCK * 4, where, align=4)

    width = _MAX_VECTORS
    while width:
        wide = code.plus(end_chunk, 1 - width)
        code.loop(wide, lambda c, width=width: multiply(c, width), start=chunk, step=width)
        count = code.most(code.sub(end_chunk, chunk), 0)
        chunk = code.plus(chunk, code.times(code.sdiv(count, code.i64(width)), width))
        width //= 2


def _weighted_values(
    code: Code,
    spec: TileSpec,
    tile: Tile,
    rows: int,
    columns: range,
    weights: Value,
    factors: Value,
    chunk: Value,
    end: Value,
) -> None:
    """Adds the weighted values of the keys before `end` to these vectors of the output, which shrinks first."""
    layout, width = spec.layout, len(columns)
    out = code.at(tile.out, code.times(tile.row, 4 * layout.value_width))

    def place(i: int, c: int) -> Value:
        return code.at(out, 4 * (i * layout.value_width + columns[c] * LANES))

    sums = []
    for i in range(rows):
        factor = code.splat(code.read(F32, factors, 4 * i), LANES)
        sums += [code.fmul(code.read(_FLOATS, place(i, c), align=4), factor) for c in range(width)]

    def add(values: Value, weight: Value, part: int, sums: list[Value]) -> list[Value]:
        """One position: `values` is its row, `weight` the address of its weight for the tile's first row."""
        vectors = [widen(code, layout, part, values, 4 * LANES * column) for column in columns]
        updated = list(sums)
        for i in range(rows):
            factor = code.splat(code.read(F32, weight, i * BLOCK * 4 + 4 * part), LANES)
            for c in range(width):
                updated[i * width + c] = fma(code, factor, vectors[c], updated[i * width + c])
        return updated

    def add_chunk(chunk: Value, *sums: Value) -> list[Value]:
        values, later = (code.read(POINTER, array, code.times(chunk, 8)) for array in (tile.values, tile.later_values))
        count = code.least(code.sub(end, code.times(chunk, LANES)), LANES)
        weight = code.at(weights, code.times(chunk, LANES * 4))

        def add_lane(lane: Value, *sums: Value) -> list[Value]:
            updated = list(sums)
            for column in columns:
                code.prefetch(code.at(later, code.times(lane, layout.value_stride), 4 * LANES * column))
            for part in range(layout.pair):
                row = code.at(values, code.times(lane, layout.value_stride))
                updated = add(row, code.at(weight, code.times(lane, 4 * layout.pair)), part, updated)
            return updated

        # Whole numbers are never NaN: those of positions behind the last one have weights of 0.
        lanes = code.ceil_div(count, layout.pair) if layout.scaled else code.sdiv(count, code.i64(layout.pair))
        return code.loop(lanes, add_lane, sums)

    sums = code.loop(code.ceil_div(end, LANES), add_chunk, sums, start=chunk)
    if layout.pair > 1 and not layout.scaled:
        # The last position may be the first of a pair whose second one was never written, and 0 * NaN is NaN.
        before = code.block
        single = code.icmp_signed("!=", code.srem(end, code.i64(layout.pair)), code.i64(0))
        with code.if_then(single):
            last = code.sub(end, code.i64(1))
            lane = code.sdiv(code.srem(last, code.i64(LANES)), code.i64(layout.pair))
            values = code.read(POINTER, tile.values, code.times(code.sdiv(last, code.i64(LANES)), 8))
            values = code.at(values, code.times(lane, layout.value_stride))
            added = add(values, code.at(weights, code.times(last, 4)), 0, sums)
            inside = code.block
        joined = []
        for old, new in zip(sums, added, strict=True):
            phi = code.phi(_FLOATS)
            phi.add_incoming(old, before)
            phi.add_incoming(new, inside)
            joined.append(phi)
        sums = joined
    for i in range(rows):
        for c in range(width):
            code.write(sums[i * width + c], place(i, c), align=4)


def widen(code: Code, layout: PageLayout, part: int, pointer: Value, offset: int | Value) -> Value:
    """Element `part` of 16 lanes of the cache, as fp32."""
    if layout.pair == 1:
        return code.read(_FLOATS, pointer, offset, align=4)
    raw = code.read(vector(I32, LANES), pointer, offset, align=4)
    if layout.scaled:
        up = code.shl(raw, ir.Constant(raw.type, [24 - 8 * part] * LANES))
        return code.sitofp(code.ashr(up, ir.Constant(raw.type, [24] * LANES)), _FLOATS)
    if part == 0:
        raw = code.shl(raw, ir.Constant(raw.type, [16] * LANES))
    else:
        raw = code.and_(raw, ir.Constant(raw.type, [-0x10000] * LANES))
    return code.bitcast(raw, _FLOATS)
