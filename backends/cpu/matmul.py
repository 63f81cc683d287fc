"""Matmul kernels on packed weights: `x [M, K] @ weight [N, K].T`, accumulated in fp32.

A weight is packed in panels of some columns (outputs) each, and in a panel K comes before the column, so that a kernel
reads it front to back: [panels, K / group, columns, group], where a group is the 32 bits of one broadcast of x: two
bf16, one fp32 or four int8. A tile of up to `Tile.rows` rows keeps its sums in registers for the whole of K, and each
sum runs over K in order, whatever tile it is in: the result of a row has the same bits whichever rows stand beside it.

Whole numbers of 8 bits have a scale for each column, applied where a tile is written. They meet x in fp32 (`w8`) or,
where the processor has dot products of bytes, x in bytes with a scale for each row (`i8`). Those products take one side
without a sign: x has 128 added, and 128 times the sum of a column's weights is taken off again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from llvmlite import ir

from .ffi import Frame, handler, register
from .jit import BF16, F32, I1, I8, I16, I32, I64, POINTER, VOID, Code, Value, features, function, processor, vector
from .threads import parallel_for

Precision = Literal["f32", "bf16", "w8", "i8"]

_LINE = 64
_WORD = 4
"""Bytes of a group: one element of a tile's vectors."""

_CHUNK_WORK = 1 << 20
"""Bytes of weights times rows (at least _STREAMED_ROWS) of one chunk of the parallel loop: about 5 us on one core."""
_STREAMED_ROWS = 10
"""Rows below which reading the weights takes longer than the arithmetic."""
_MAX_CHUNKS = 64
_ROW_BYTES = 1 << 19
"""Bytes of x that stay in a core's second-level cache while panels pass by."""


@dataclass(frozen=True)
class Tile:
    """Sums held in registers: rows times vectors of `lanes` fp32 each."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    def panels(self, rows: int) -> int:
        """Panels side by side in a tile of this many rows: few rows need several, to hide the latency of a sum."""
        return next((panels for panels in (4, 2) if panels * rows <= self.rows), 1)


@cache
def tile() -> Tile:
    """The tile that fits this processor's registers."""
    if "avx512f" in features():
        return Tile(rows=12, vectors=2, lanes=16)
    if "avx2" in features():
        return Tile(rows=6, vectors=2, lanes=8)
    return Tile(rows=4, vectors=2, lanes=4)


@cache
def multiplies_bf16() -> bool:
    """Whether bf16 weights are multiplied with x in bf16, and not with x in fp32, which they are widened to.

    Zen 4 and 5 do a dot product of bf16 pairs at the rate of an fp32 multiply-add. Intel's cores take four times as
    long for it (Emerald Rapids: 1.3 G/s against 5.4 G/s), so that widening is twice as fast.
    """
    return processor().startswith("znver") and "avx512bf16" in features()


@cache
def multiplies_bytes() -> bool:
    """Whether dot products of bytes are there."""
    return "avx512vnni" in features()


@dataclass(frozen=True)
class _Kernels:
    """Emits the functions for weights of one type into a module."""

    module: ir.Module
    given: Precision

    @property
    def x_word(self) -> int:
        """Bytes of x that one word of weights meets."""
        if self.given == "w8":
            return 16
        return 8 if self.given == "bf16" and not multiplies_bf16() else 4

    @property
    def scaled(self) -> bool:
        """Whether weights have scales."""
        return self.given in ("w8", "i8")

    def tile(self, rows: int, panels: int) -> ir.Function:
        """tile(x, x_stride, w, words, out, out_stride, out_bytes, columns, ahead, step, scales, row_scales): rows of x
        times neighbouring panels, written as fp32 or, if out_bytes is 2, bf16.

        Strides are in bytes; `columns` is how many of the panels' columns exist, and only those are written. With
        each word, memory `step` bytes further behind `ahead` is asked for: the panels that come next. Of weights that
        have them, `scales` are the first panel's [panels, 2, columns], and `row_scales` those of x.
        """
        shape, name = tile(), f"tile.{self.given}.{rows}.{panels}"
        kinds = [POINTER, I64, POINTER, I64, POINTER, I64, I64, I64, POINTER, I64, POINTER, POINTER]
        made, code = function(self.module, name, VOID, kinds)
        x, x_stride, w, words, out, out_stride, out_bytes, columns, ahead, step, scales, row_scales = made.args
        vectors = shape.vectors * panels
        panel_bytes = code.times(words, shape.columns * _WORD)
        x_rows = [code.at(x, code.times(x_stride, row)) for row in range(rows)]
        panel_starts = [code.at(w, code.times(panel_bytes, panel)) for panel in range(panels)]
        zero = ir.Constant(vector(F32, shape.lanes), [0.0] * shape.lanes)
        if self.given == "i8":
            zero = ir.Constant(vector(I32, shape.lanes), [0] * shape.lanes)

        def accumulate(word: Value, *sums: Value) -> list[Value]:
            where = code.times(word, shape.columns * _WORD)
            weights = [
                code.read(vector(I32, shape.lanes), start, where, number * shape.lanes * _WORD, align=4)
                for start in panel_starts
                for number in range(shape.vectors)
            ]
            for panel in range(panels):
                for line in range(0, shape.columns * _WORD, _LINE):
                    code.prefetch(code.at(ahead, code.times(panel_bytes, panel), code.times(word, step), line))
            for part, factors in enumerate(self._factors(code, weights)):
                new: list[Value] = []
                for row, start in enumerate(x_rows):
                    group = code.read(I32, start, code.times(word, self.x_word), _WORD * part, align=2)
                    group = code.splat(group, shape.lanes)
                    these = sums[row * vectors : (row + 1) * vectors]
                    # Pinned, or LLVM loads all of x first and runs out of registers.
                    new += code.pin([self._multiply(code, *each, group) for each in zip(these, factors, strict=True)])
                sums = tuple(new)
            return list(sums)

        sums = code.loop(words, accumulate, [zero] * (rows * vectors))
        if self.scaled:
            sums = self._scaled(code, sums, rows, scales, row_scales)
        full = code.icmp_signed(">=", columns, code.i64(vectors * shape.lanes))
        out_rows = [code.at(out, code.times(out_stride, row)) for row in range(rows)]
        with code.if_else(code.icmp_signed("==", out_bytes, code.i64(2))) as (short, long):
            for branch, kind in ((short, I16), (long, F32)):
                with branch, code.if_else(full, likely=True) as (whole, part):
                    with whole:
                        self._store(code, sums, out_rows, kind, None)
                    with part:
                        self._store(code, sums, out_rows, kind, columns)
        code.ret_void()
        return made

    def _factors(self, code: Code, weights: list[Value]) -> Iterator[list[Value]]:
        """What the words of weights hold for each word of x in turn: themselves, each of two bf16 or each of four
        bytes as fp32."""
        words = weights[0].type

        def constant(number: int) -> Value:
            return ir.Constant(words, [number] * words.count)

        if self.x_word == _WORD:
            yield weights
        elif self.given == "bf16":  # the upper half of an fp32
            yield [code.shl(word, constant(16)) for word in weights]
            yield [code.and_(word, constant(0xFFFF0000)) for word in weights]
        else:
            for above in (24, 16, 8, 0):
                up = [code.shl(word, constant(above)) for word in weights]
                whole = [code.ashr(word, constant(24)) for word in up]
                yield [code.sitofp(word, vector(F32, words.count)) for word in whole]

    def _multiply(self, code: Code, total: Value, weights: Value, group: Value) -> Value:
        """total + weights * group."""
        lanes = tile().lanes
        floats = vector(F32, lanes)
        if self.given == "i8":
            return code.intrinsic("llvm.x86.avx512.vpdpbusd.512", total.type, total, group, weights)
        if self.given == "bf16" and self.x_word == _WORD:
            pairs = vector(BF16, 2 * lanes)
            dot = "llvm.x86.avx512bf16.dpbf16ps.512"
            return code.intrinsic(dot, floats, total, code.bitcast(group, pairs), code.bitcast(weights, pairs))
        factors = code.bitcast(group, floats), code.bitcast(weights, floats)
        return code.intrinsic(f"llvm.fmuladd.v{lanes}f32", floats, *factors, total)

    def _scaled(self, code: Code, sums: list[Value], rows: int, scales: Value, row_scales: Value) -> list[Value]:
        """A tile's sums in fp32, times the scales of their columns and rows."""
        shape, floats = tile(), vector(F32, tile().lanes)
        vectors, made = len(sums) // rows, list(sums)
        each_row = []
        if self.given == "i8":
            each_row = [code.splat(code.read(F32, row_scales, 4 * row, align=4), shape.lanes) for row in range(rows)]
        for number in range(vectors):
            panel, within = divmod(number, shape.vectors)
            where = 4 * (2 * panel * shape.columns + within * shape.lanes)
            scale = code.read(floats, scales, where, align=4)
            for row in range(rows):
                value = sums[row * vectors + number]
                if self.given == "i8":
                    above = code.read(value.type, scales, where + 4 * shape.columns, align=4)
                    value = code.sitofp(code.sub(value, above), floats)
                value = code.fmul(value, scale)
                made[row * vectors + number] = code.fmul(value, each_row[row]) if each_row else value
        return made

    def _store(
        self, code: Code, sums: list[Value], out_rows: list[Value], kind: ir.Type, columns: Value | None
    ) -> None:
        """Writes a tile's sums as bf16 (I16) or fp32; with `columns`, only that many of each row."""
        lanes = tile().lanes
        out_bytes = 2 if kind is I16 else 4
        vectors = len(sums) // len(out_rows)
        for number in range(vectors):
            first = number * lanes
            mask = None
            if columns is not None:
                left = code.splat(code.sub(columns, code.i64(first)), lanes)
                mask = code.icmp_signed("<", ir.Constant(vector(I64, lanes), list(range(lanes))), left)
            for row, out in enumerate(out_rows):
                value = sums[row * vectors + number]
                if kind is I16:
                    value = rounded(code, value)
                target = code.at(out, first * out_bytes)
                if mask is None:
                    code.write(value, target, align=out_bytes)
                else:
                    name = f"llvm.masked.store.v{lanes}{'i16' if kind is I16 else 'f32'}.p0"
                    code.intrinsic(name, VOID, value, target, ir.Constant(I32, out_bytes), mask)

    def block(self) -> ir.Function:
        """block(x, w, words, out, out_bytes, columns, rows, first, last, scales, row_scales): rows of x times panels
        first..last-1 of a weight that starts at w and has `columns` columns."""
        shape = tile()
        kinds = [POINTER, POINTER, I64, POINTER, I64, I64, I64, I64, I64, POINTER, POINTER]
        made, code = function(self.module, f"block.{self.given}", VOID, kinds)
        x, w, words, out, out_bytes, columns, rows, first, last, scales, row_scales = made.args
        x_stride, out_stride = code.times(words, self.x_word), code.times(columns, out_bytes)
        panel_bytes = code.times(words, shape.columns * _WORD)
        tiles = {
            (count, panels): self.tile(count, panels)
            for count in range(1, shape.rows + 1)
            for panels in {1, shape.panels(count)}
        }

        # Equal tiles: 13 rows are 7 and 6, not 12 and 1.
        num_tiles = code.ceil_div(rows, shape.rows)
        height = code.ceil_div(rows, num_tiles)
        # Each of a panel's tiles fetches its share of the next panel, so that memory works all the time.
        step = code.udiv(code.i64(shape.columns * _WORD), num_tiles)

        def run(count: int, panels: int, row: Value, panel: Value) -> None:
            start = code.times(panel, shape.columns)
            share = code.times(code.udiv(row, height), code.times(words, step))
            code.call(
                tiles[count, panels],
                [
                    code.at(x, code.times(row, x_stride)),
                    x_stride,
                    code.at(w, code.times(panel, panel_bytes)),
                    words,
                    code.at(out, code.times(row, out_stride), code.times(start, out_bytes)),
                    out_stride,
                    out_bytes,
                    code.sub(columns, start),
                    code.at(w, code.times(code.plus(panel, panels), panel_bytes), share),
                    step,
                    code.at(scales, code.times(panel, _scale_bytes())),
                    code.at(row_scales, code.times(row, 4)),
                ],
            )

        several = [count for count in range(1, shape.rows + 1) if shape.panels(count) > 1]
        bulk = code.append_basic_block("bulk")
        cases = {count: code.append_basic_block(f"rows{count}") for count in several}
        choice = code.switch(rows, bulk)
        for count, case in cases.items():
            choice.add_case(code.i64(count), case)
            code.position_at_end(case)
            panels = shape.panels(count)
            whole = code.sub(last, code.urem(code.sub(last, first), code.i64(panels)))
            code.loop(whole, partial(run, count, panels, code.i64(0)), start=first, step=panels)
            code.loop(last, partial(run, count, 1, code.i64(0)), start=whole)
            code.ret_void()

        code.position_at_end(bulk)

        def each_panel(panel: Value) -> None:
            def each_tile(row: Value) -> None:
                end = code.append_basic_block("tile.end")
                choice = code.switch(code.least(height, code.sub(rows, row)), end)
                for count in range(1, shape.rows + 1):
                    case = code.append_basic_block(f"tile{count}")
                    choice.add_case(code.i64(count), case)
                    code.position_at_end(case)
                    run(count, 1, row, panel)
                    code.branch(end)
                code.position_at_end(end)

            code.loop(rows, each_tile, step=height)

        code.loop(last, each_panel, start=first)
        code.ret_void()
        return made

    def linear(self, block: ir.Function) -> list[str]:
        """Handlers of linear(x [M, K], weights [S, panels, words, columns, group], number [], count []) -> [M, N]: the
        first `count` rows, zeros behind them. Further operands where weights are scaled: scales [S, panels, 2, columns]
        and, of i8, the rows' scales [M]."""
        fields = ("x", "w", "out", "out_bytes", "rows", "words", "columns", "panels", "wide", "groups", "high")
        fields += _SCALES
        body, code = function(self.module, "linear.chunk", VOID, [POINTER, I64])
        job = _Job.of(code, body.args[0], fields)
        group, band = code.urem(body.args[1], job["groups"]), code.udiv(body.args[1], job["groups"])
        first, row = code.times(group, job["wide"]), code.times(band, job["high"])
        rows = code.least(job["high"], code.sub(job["rows"], row))
        self._run_block(code, block, job, code.i64(0), row, rows, first)

        def handle(frame: Frame, out_bytes: int) -> None:
            code = frame.code
            x, weights, out = frame.argument(0), frame.argument(1), frame.result(0)
            count = code.sext(code.read(I32, frame.argument(3).data), I64)
            rows, panels, words = code.least(x.size(0), code.most(count, 1)), weights.size(1), weights.size(2)
            _clear_behind(code, out.data, rows, x.size(0), code.times(out.size(1), out_bytes))
            panel_bytes = code.times(words, tile().columns * _WORD)
            w = _matrix(code, frame, code.times(panels, panel_bytes))
            high = code.most(code.udiv(code.i64(_ROW_BYTES), code.times(words, self.x_word)), tile().rows)
            wide = _panels_of_a_chunk(code, panels, panel_bytes, code.least(rows, high))
            groups = code.ceil_div(panels, wide)
            values = (x.data, w, out.data, code.i64(out_bytes), rows, words, out.size(1), panels, wide, groups, high)
            chunks = code.times(groups, code.ceil_div(rows, high))
            job = _Job.new(code, (*values, *self._scales(frame, panels)))
            code.call(parallel_for(self.module), [frame.pointer, chunks, code.address(body), job])

        return self._handlers("linear", handle)

    def grouped(self, block: ir.Function) -> list[str]:
        """Handlers of grouped(x [R, K], weights, number [], group_sizes [E]) -> [R, N]: matrix number + e for the rows
        of group e, zeros behind the last group. Scales are further operands, as in linear."""
        fields = ("x", "w", "out", "out_bytes", "words", "columns", "panels", "wide", "groups", "table")
        fields += _SCALES
        body, code = function(self.module, "grouped.chunk", VOID, [POINTER, I64])
        job = _Job.of(code, body.args[0], fields)
        part, entry = code.urem(body.args[1], job["groups"]), code.udiv(body.args[1], job["groups"])
        expert, row, rows = (code.read(I64, job["table"], code.times(entry, 24), 8 * at) for at in range(3))
        self._run_block(code, block, job, expert, row, rows, code.times(part, job["wide"]))

        def handle(frame: Frame, out_bytes: int) -> None:
            code = frame.code
            x, weights, sizes, out = frame.argument(0), frame.argument(1), frame.argument(3), frame.result(0)
            rows, panels, words = x.size(0), weights.size(1), weights.size(2)
            panel_bytes = code.times(words, tile().columns * _WORD)
            w = _matrix(code, frame, code.times(panels, panel_bytes))
            # The groups that have rows: (expert, first row, rows) each.
            table = code.intrinsic("malloc", POINTER, code.times(code.plus(sizes.size(0), 1), 24))
            lengths = sizes.data

            def each_group(expert: Value, count: Value, row: Value) -> list[Value]:
                size = code.sext(code.read(I32, lengths, code.times(expert, 4)), I64)
                size = code.least(size, code.sub(rows, row))
                entry = code.at(table, code.times(count, 24))
                for at, value in enumerate((expert, row, size)):
                    code.write(value, entry, 8 * at)
                found = code.zext(code.icmp_signed(">", size, code.i64(0)), I64)
                return [code.add(count, found), code.add(row, size)]

            count, end = code.loop(sizes.size(0), each_group, [code.i64(0), code.i64(0)])
            _clear_behind(code, out.data, end, rows, code.times(out.size(1), out_bytes))
            wide = _panels_of_a_chunk(code, panels, panel_bytes, code.ceil_div(end, code.most(count, 1)))
            groups = code.ceil_div(panels, wide)
            values = (x.data, w, out.data, code.i64(out_bytes), words, out.size(1), panels, wide, groups, table)
            chunks = code.times(groups, count)
            job = _Job.new(code, (*values, *self._scales(frame, panels)))
            code.call(parallel_for(self.module), [frame.pointer, chunks, code.address(body), job])
            code.intrinsic("free", VOID, table)

        return self._handlers("grouped", handle)

    def _run_block(
        self, code: Code, block: ir.Function, job: "_Job", matrix: Value, row: Value, rows: Value, first: Value
    ) -> None:
        """A chunk: `rows` rows from `row` on, times job["wide"] panels from `first` on, of one matrix of several."""
        words, panels = job["words"], job["panels"]
        matrix_bytes = code.times(code.times(words, tile().columns * _WORD), panels)
        out_stride = code.times(job["columns"], job["out_bytes"])
        code.call(
            block,
            [
                code.at(job["x"], code.times(row, code.times(words, self.x_word))),
                code.at(job["w"], code.times(matrix, matrix_bytes)),
                words,
                code.at(job["out"], code.times(row, out_stride)),
                job["out_bytes"],
                job["columns"],
                rows,
                first,
                code.least(code.plus(first, job["wide"]), panels),
                code.at(job["scales"], code.times(code.times(matrix, panels), _scale_bytes())),
                code.at(job["row_scales"], code.times(row, 4)),
            ],
        )
        code.ret_void()

    def _scales(self, frame: Frame, panels: Value) -> tuple[Value, Value]:
        """Where the scales of the handler's first matrix and of x begin; anywhere if there are none."""
        code, nowhere = frame.code, ir.Constant(POINTER, None)
        if not self.scaled:
            return nowhere, nowhere
        number = code.sext(code.read(I32, frame.argument(2).data), I64)
        scales = code.at(frame.argument(4).data, code.times(code.times(number, panels), _scale_bytes()))
        return scales, frame.argument(5).data if self.given == "i8" else nowhere

    def _handlers(self, kind: str, handle: Callable[[Frame, int], None]) -> list[str]:
        """One handler for each type of result."""
        wanted = {f"{kind}_{self.given}_f32": 4} | ({f"{kind}_{self.given}_bf16": 2} if self.given != "f32" else {})
        for name, out_bytes in wanted.items():

            def of_this_type(frame: Frame, out_bytes: int = out_bytes) -> None:
                handle(frame, out_bytes)

            handler(self.module, name, of_this_type)
        return list(wanted)


_SCALES = ("scales", "row_scales")


def _scale_bytes() -> int:
    """Bytes of one panel's scales: a number for each column, and what to take off its sum."""
    return 2 * 4 * tile().columns


class _Job(dict[str, Value]):
    """What the chunks of a loop share: i64 values and pointers in the memory of the handler."""

    @classmethod
    def new(cls, code: Code, values: Sequence[Value]) -> Value:
        job = code.stack(8 * len(values))
        for at, value in enumerate(values):
            code.write(value, job, 8 * at)
        return job

    @classmethod
    def of(cls, code: Code, job: Value, fields: Sequence[str]) -> "_Job":
        pointers = ("x", "w", "out", "table", *_SCALES)
        return cls({key: code.read(POINTER if key in pointers else I64, job, 8 * at) for at, key in enumerate(fields)})


def _matrix(code: Code, frame: Frame, matrix_bytes: Value) -> Value:
    """Where the matrix begins whose number is the third operand."""
    number = code.sext(code.read(I32, frame.argument(2).data), I64)
    return code.at(frame.argument(1).data, code.times(number, matrix_bytes))


def _clear_behind(code: Code, out: Value, first: Value, end: Value, stride: Value) -> None:
    """Zeros in rows first : end of a result."""
    behind, zero, plain = code.at(out, code.times(first, stride)), ir.Constant(I8, 0), ir.Constant(I1, 0)
    code.intrinsic("llvm.memset.p0.i64", VOID, behind, zero, code.times(code.sub(end, first), stride), plain)


def _panels_of_a_chunk(code: Code, panels: Value, panel_bytes: Value, rows: Value) -> Value:
    """Panels worth a chunk of the parallel loop."""
    work = code.times(panel_bytes, code.most(rows, _STREAMED_ROWS))
    enough = code.most(code.ceil_div(code.i64(_CHUNK_WORK), work), code.ceil_div(panels, _MAX_CHUNKS))
    side_by_side = tile().panels(1)
    several = code.times(code.ceil_div(enough, side_by_side), side_by_side)
    return code.select(code.icmp_signed("<=", rows, code.i64(tile().rows // 2)), several, enough)


def rounded(code: Code, value: Value) -> Value:
    """fp32 vectors to the bits of bf16, to nearest, ties to even; NaN stays NaN."""
    lanes = value.type.count
    words = vector(I32, lanes)
    bits = code.bitcast(value, words)

    def constant(number: int) -> Value:
        return ir.Constant(words, [number] * lanes)

    odd = code.and_(code.lshr(bits, constant(16)), constant(1))
    near = code.lshr(code.add(code.add(bits, constant(0x7FFF)), odd), constant(16))
    near = code.select(code.fcmp_unordered("uno", value, value), constant(0x7FC0), near)
    return code.trunc(near, vector(I16, lanes))


def emitted(given: Precision) -> tuple[ir.Module, list[str]]:
    """The kernels for weights of this type, and the names of the handlers among them."""
    kernels = _Kernels(ir.Module(f"distaff_cpu_matmul_{given}"), given)
    block = kernels.block()
    return kernels.module, kernels.linear(block) + kernels.grouped(block)


@cache
def targets(given: Precision) -> dict[str, str]:
    """Custom call targets for weights of this type, by "linear_<weights>_<result>" and "grouped_<...>".

    The first call compiles and registers them.

    Raises:
        UnsupportedError: no machine code can be made here.
    """
    return register(*emitted(given), optimise=False)
