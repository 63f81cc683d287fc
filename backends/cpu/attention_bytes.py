"""Scores and weighted values of a cache of bytes, by dot products of bytes that are summed up as whole numbers.

The other side of a product, queries or weights, has 16 bits: a number from 0 to 65535 times a scale of its own, cut
into a high and a low byte, each of which meets the cache's. That is finer than bfloat16, and takes a third of the
operations of widening the cache to fp32. Sums are exact, whatever their order.

A query is three arrays of bytes [key_width], its high bytes, its low ones, and its scale behind them; 32768 has been
added to its numbers, and 32768 times the sum of a key is taken off its scores.
"""

from llvmlite import ir

from .attention_layout import LANES, PageLayout
from .attention_math import LOG2_E, constant, fma, reduced
from .attention_shape import BLOCK, Tile, TileSpec
from .jit import F32, I8, I16, I32, POINTER, Code, Value, vector
from .tile import dots_bytes

_WORDS = vector(I32, LANES)
_FLOATS = vector(F32, LANES)
_NEAREST = 1.5 * 2**23
"""Added to a smaller number, it leaves the nearest whole one in the lowest 16 bits."""
_HALF, _MOST = 2**15, 2**16 - 1
_SUMS = 24
"""Registers for sums: two of a row and a vector, of 32 in all."""


def multiplies_cache(layout: PageLayout, dtype: str) -> bool:
    """Whether this cache is multiplied as it lies with queries of this type; those of fp32 are more exact."""
    return layout.scaled and dtype == "bfloat16" and dots_bytes()


def write_query(code: Code, spec: TileSpec, query: Value, target: Value) -> None:
    """A query [head_dim] of fp32 in the form of this file; zeros up to key_width."""
    layout = spec.layout
    width, extra = layout.head_dim, layout.key_width - layout.head_dim
    size = code.intrinsic(f"llvm.fabs.v{width}f32", query.type, query)
    most = code.intrinsic(f"llvm.vector.reduce.fmax.v{width}f32", F32, size)
    most = code.select(code.fcmp_ordered(">", most, ir.Constant(F32, 0.0)), most, ir.Constant(F32, 1.0))
    times = code.splat(code.fdiv(ir.Constant(F32, _HALF - 1), most), width)
    whole = fma(code, query, times, constant(_NEAREST + _HALF, width))
    high, low = _halves(code, whole)
    for number, (half, zero) in enumerate(((high, _HALF >> 8), (low, 0))):
        code.write(half, target, number * layout.key_width, align=1)
        for behind in range(extra):
            code.write(ir.Constant(I8, zero), target, number * layout.key_width + width + behind, align=1)
    # Scores are in units of log 2 at once; those with a cap are scaled where they are capped.
    factor = ir.Constant(F32, 1.0 if spec.soft_cap is not None else spec.scale * LOG2_E)
    scale = code.fmul(code.fdiv(most, ir.Constant(F32, _HALF - 1)), factor)
    code.write(scale, target, 2 * layout.key_width, align=4)


def byte_scores(
    code: Code, spec: TileSpec, tile: Tile, rows: int, scores: Value, chunk: Value, end_chunk: Value
) -> None:
    """Writes the products of queries and keys, [rows, BLOCK] from the first to the last chunk."""
    layout = spec.layout
    row_bytes = 4 * layout.key_width
    queries = code.at(tile.queries, code.times(tile.row, row_bytes))
    ones = ir.Constant(_WORDS, [0x01010101] * LANES)

    def multiply(chunk: Value, width: int) -> None:
        keys, later = (
            [code.read(POINTER, array, code.times(code.plus(chunk, c), 8)) for c in range(width)]
            for array in (tile.keys, tile.later_keys)
        )

        def step(lane: Value, *sums: Value) -> list[Value]:
            where, of_query = code.times(lane, layout.key_stride), code.times(lane, 4)
            for address in later:
                code.prefetch(code.at(address, where))
            vectors = [code.read(_WORDS, key, where, align=4) for key in keys]
            updated = [_dot(code, total, ones, key) for total, key in zip(sums[:width], vectors, strict=True)]
            for i in range(rows):
                for half in range(2):
                    word = code.read(I32, queries, i * row_bytes + half * layout.key_width, of_query, align=1)
                    word, these = code.splat(word, LANES), sums[len(updated) : len(updated) + width]
                    # Pinned, or LLVM loads all words first and runs out of registers.
                    updated += code.pin(
                        [_dot(code, *each) for each in zip(these, [word] * width, vectors, strict=True)]
                    )
            return updated

        # The scales of keys and of values are lines of their own, each of which would be waited for.
        for address in later:
            for which in range(2):
                code.prefetch(code.at(address, layout.number_elements + 4 * layout.page * which))
        zeros = [ir.Constant(_WORDS, [0] * LANES)] * (width + 2 * rows * width)
        sums = code.loop(layout.key_width // layout.pair, step, zeros)
        for c in range(width):
            above = code.shl(sums[c], ir.Constant(_WORDS, [7] * LANES))  # 128 for each 32768 in the high bytes
            scale = code.read(_FLOATS, keys[c], layout.number_elements, align=4)
            where = code.times(code.plus(chunk, c), LANES * 4)
            for i in range(rows):
                high, low = (sums[width + (2 * i + half) * width + c] for half in range(2))
                score = _joined(code, code.sub(high, above), low)
                each = code.read(F32, queries, i * row_bytes + 2 * layout.key_width, align=4)
                score = code.fmul(score, code.fmul(scale, code.splat(each, LANES)))
                code.write(score, scores, i * BLOCK * 4, where, align=4)

    width = 4 if rows <= 2 else 2
    while width:
        code.loop(code.plus(end_chunk, 1 - width), lambda c, width=width: multiply(c, width), start=chunk, step=width)
        count = code.most(code.sub(end_chunk, chunk), 0)
        chunk = code.plus(chunk, code.times(code.sdiv(count, code.i64(width)), width))
        width //= 2


def byte_values(
    code: Code,
    spec: TileSpec,
    tile: Tile,
    rows: int,
    weights: Value,
    mosts: Value,
    factors: Value,
    chunk: Value,
    end_chunk: Value,
) -> None:
    """Adds the values of these chunks, times the weights [rows, BLOCK], to the output, which shrinks first by the
    rows' `factors`. `mosts` [rows, LANES] are the largest weights of each lane."""
    layout = spec.layout
    halves, scales = code.stack(2 * rows * BLOCK), code.stack(4 * rows)

    def narrow(i: Value) -> None:
        row = code.at(weights, code.times(i, BLOCK * 4))

        def of(chunk: Value) -> Value:
            return code.read(_FLOATS, row, code.times(chunk, LANES * 4), align=4)

        most = reduced(code, code.read(_FLOATS, mosts, code.times(i, 4 * LANES), align=4), largest_of=True)
        most = code.select(code.fcmp_ordered(">", most, ir.Constant(F32, 0.0)), most, ir.Constant(F32, 1.0))
        times = code.splat(code.fdiv(ir.Constant(F32, float(_MOST)), most), LANES)

        def split(chunk: Value) -> None:
            both = _halves(code, fma(code, of(chunk), times, constant(_NEAREST, LANES)))
            for number, half in enumerate(both):
                target = code.at(halves, code.times(i, 2 * BLOCK), number * BLOCK)
                code.write(half, target, code.times(chunk, LANES), align=1)

        code.loop(end_chunk, split, start=chunk)
        code.write(code.fdiv(most, ir.Constant(F32, float(_MOST))), scales, code.times(i, 4))

    code.loop(rows, narrow)
    vectors, most = layout.value_width // LANES, _SUMS // (2 * rows)
    parts = -(-vectors // most)
    for part in range(parts):
        columns = range(vectors * part // parts, vectors * (part + 1) // parts)
        _add_columns(code, layout, tile, rows, columns, halves, scales, factors, chunk, end_chunk)


def _add_columns(
    code: Code,
    layout: PageLayout,
    tile: Tile,
    rows: int,
    columns: range,
    halves: Value,
    scales: Value,
    factors: Value,
    chunk: Value,
    end_chunk: Value,
) -> None:
    """byte_values for some vectors of the output."""
    width = len(columns)

    def add_chunk(chunk: Value, *sums: Value) -> list[Value]:
        values, later = (code.read(POINTER, array, code.times(chunk, 8)) for array in (tile.values, tile.later_values))
        updated = list(sums)
        for lane in range(LANES // layout.pair):
            for column in columns:
                code.prefetch(code.at(later, lane * layout.value_stride, 4 * LANES * column))
            vectors = [
                code.read(_WORDS, values, lane * layout.value_stride + 4 * LANES * column, align=4)
                for column in columns
            ]
            for i in range(rows):
                for half in range(2):
                    where = code.at(halves, i * 2 * BLOCK + half * BLOCK + 4 * lane)
                    word = code.splat(code.read(I32, where, code.times(chunk, LANES), align=1), LANES)
                    own = slice((2 * i + half) * width, (2 * i + half + 1) * width)
                    these = zip(updated[own], [word] * width, vectors, strict=True)
                    updated[own] = code.pin([_dot(code, *each) for each in these])
        return updated

    zeros = [ir.Constant(_WORDS, [0] * LANES)] * (2 * rows * width)
    sums = code.loop(end_chunk, add_chunk, zeros, start=chunk)
    out = code.at(tile.out, code.times(tile.row, 4 * layout.value_width))
    for i in range(rows):
        factor, scale = (code.splat(code.read(F32, each, 4 * i), LANES) for each in (factors, scales))
        for c, column in enumerate(columns):
            place = code.at(out, 4 * (i * layout.value_width + column * LANES))
            added = _joined(code, *(sums[(2 * i + half) * width + c] for half in range(2)))
            kept = code.fmul(code.read(_FLOATS, place, align=4), factor)
            code.write(fma(code, added, scale, kept), place, align=4)


def _dot(code: Code, total: Value, unsigned: Value, signed: Value) -> Value:
    """total, and in each lane the sum of four products of bytes."""
    return code.intrinsic("llvm.x86.avx512.vpdpbusd.512", _WORDS, total, unsigned, signed)


def _joined(code: Code, high: Value, low: Value) -> Value:
    """256 high + low, in fp32."""
    high, low = (code.sitofp(each, _FLOATS) for each in (high, low))
    return fma(code, high, constant(256.0, LANES), low)


def _halves(code: Code, whole: Value) -> tuple[Value, Value]:
    """The high and the low byte of the numbers in the lowest 16 bits."""
    count = whole.type.count
    short: Value = code.trunc(code.bitcast(whole, vector(I32, count)), vector(I16, count))
    high = code.lshr(short, ir.Constant(short.type, [8] * count))
    return code.trunc(high, vector(I8, count)), code.trunc(short, vector(I8, count))
