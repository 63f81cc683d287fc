"""Softmax of a block of scores, which become weights; the rows' running maxima and totals follow."""

from dataclasses import dataclass

from llvmlite import ir

from .attention_layout import LANES
from .attention_math import LOG2_E, constant, exp2, fma, largest, reduced, tanh
from .attention_shape import BLOCK, TileSpec
from .jit import F32, I32, I64, POINTER, VOID, Code, Value, function, vector

ABREAST = 3
"""Rows that are worked on side by side, since each waits for its own results: with one, prompts of 512 tokens took 7 %
longer to attend."""

LOWEST = -3.4028234663852886e38
_FLOATS = vector(F32, LANES)


@dataclass(frozen=True)
class _Row:
    """What is known of a row: addresses, and its position."""

    scores: Value
    factor: Value
    most: Value
    top: Value
    total: Value
    position: Value


_ROW_BYTES = (4 * BLOCK, 4, 4 * LANES, 4, 4 * LANES)
"""From one row's part of these arrays to the next one's."""


def emit_softmax(module: ir.Module, spec: TileSpec, count: int) -> ir.Function:
    """softmax(scores, factors, most, tops, totals, keys, chunk, end chunk, position, row): turns the scores of `count`
    rows into weights, in place.

    Updates running maxima and totals; by how much earlier weights shrink goes to `factors`. `position` is that of
    row 0, `row` the number of the first one. Where values have scales, which stand behind those of the `keys`, the
    weights are multiplied with them; the largest of them go to `most`, lane by lane.
    """
    name = f"softmax{count}"
    if name in module.globals:
        return module.globals[name]
    made, code = function(module, name, VOID, [POINTER] * 6 + [I64] * 4)
    arrays, (keys, chunk, end_chunk, first, row) = made.args[: len(_ROW_BYTES)], made.args[len(_ROW_BYTES) :]
    positions = [code.plus(first, code.sdiv(code.plus(row, i), code.i64(spec.groups))) for i in range(count)]
    rows = []
    for i, position in enumerate(positions):
        scores, factor, most, top, total = (code.at(a, i * size) for a, size in zip(arrays, _ROW_BYTES, strict=True))
        rows.append(_Row(scores, factor, most, top, total, position))
    seen = code.icmp_signed(">=", code.plus(positions[0], 1), code.times(end_chunk, LANES))
    if spec.window is not None:
        oldest = code.plus(positions[-1], 1 - spec.window)
        seen = code.and_(seen, code.icmp_signed("<=", oldest, code.times(chunk, LANES)))
    # To see all keys is the rule, and takes two thirds of the operations, with the same results.
    with code.if_then(seen):
        _weigh(code, spec, rows, keys, chunk, end_chunk, masked=False)
        code.ret_void()
    _weigh(code, spec, rows, keys, chunk, end_chunk, masked=True)
    code.ret_void()
    return made


def _weigh(
    code: Code, spec: TileSpec, rows: list[_Row], keys: Value, chunk: Value, end_chunk: Value, *, masked: bool
) -> None:
    """emit_softmax, of keys that these rows see in part (`masked`) or all of them."""
    lanes = ir.Constant(vector(I32, LANES), list(range(LANES)))
    zero = constant(0.0, LANES)

    def limit(chunk: Value, *best: Value) -> list[Value]:
        key = code.add(lanes, code.splat(code.trunc(code.times(chunk, LANES), I32), LANES))
        return [largest(code, of_row(row, chunk, key), most) for row, most in zip(rows, best, strict=True)]

    def of_row(row: _Row, chunk: Value, key: Value) -> Value:
        where = code.at(row.scores, code.times(chunk, LANES * 4))
        score = code.read(_FLOATS, where, align=4)
        if spec.soft_cap is not None:
            score = tanh(code, code.fmul(score, constant(spec.scale / spec.soft_cap, LANES)))
            score = code.fmul(score, constant(spec.soft_cap * LOG2_E, LANES))
        elif not spec.in_bytes:
            score = code.fmul(score, constant(spec.scale * LOG2_E, LANES))
        if masked:
            position = code.splat(code.trunc(row.position, I32), LANES)
            seen = code.icmp_signed("<=", key, position)
            if spec.window is not None:
                oldest = code.sub(position, ir.Constant(position.type, [spec.window] * LANES))
                seen = code.and_(seen, code.icmp_signed(">", key, oldest))
            score = code.select(seen, score, constant(float("-inf"), LANES))
        if masked or not spec.in_bytes or spec.soft_cap is not None:
            code.write(score, where, align=4)
        return score

    best = code.loop(end_chunk, limit, [constant(LOWEST, LANES)] * len(rows), start=chunk)
    before = [code.splat(code.read(F32, row.top), LANES) for row in rows]
    highest = [
        largest(code, code.splat(reduced(code, each, largest_of=True), LANES), top)
        for each, top in zip(best, before, strict=True)
    ]

    def weigh(chunk: Value, *carried: Value) -> list[Value]:
        updated = []
        for i, row in enumerate(rows):
            where = code.at(row.scores, code.times(chunk, LANES * 4))
            weight = exp2(code, code.fsub(code.read(_FLOATS, where, align=4), highest[i]))
            stored = weight
            if spec.layout.scaled:
                key = code.read(POINTER, keys, code.times(chunk, 8))
                scale = code.read(_FLOATS, key, spec.layout.number_elements + 4 * spec.layout.page, align=4)
                stored = code.fmul(weight, scale)
                if masked:  # the scale of a position that was never written may be NaN, and 0 * NaN is NaN
                    stored = code.select(code.fcmp_ordered("==", weight, zero), zero, stored)
            code.write(stored, where, align=4)
            updated += [code.fadd(carried[2 * i], weight), largest(code, stored, carried[2 * i + 1])]
        return updated

    sums = code.loop(end_chunk, weigh, [zero] * (2 * len(rows)), start=chunk)
    first = ir.Constant(I32, 0)
    for i, row in enumerate(rows):
        factor = exp2(code, code.fsub(before[i], highest[i]))
        code.write(sums[2 * i + 1], row.most, align=4)
        code.write(fma(code, code.read(_FLOATS, row.total, align=4), factor, sums[2 * i]), row.total, align=4)
        code.write(code.extract_element(highest[i], first), row.top)
        code.write(code.extract_element(factor, first), row.factor)
