"""Matmul kernels on packed weights: `x [M, K] @ weight [N, K].T`, accumulated in fp32.

A weight is packed in panels of some columns (outputs) each, and in a panel K comes before the column, so that a kernel
reads it front to back: [panels, K / group, columns, group], where a group is the 32 bits of one broadcast of x: two
bf16, one fp32 or four int8. A tile of up to `Tile.rows` rows keeps its sums in registers for the whole of K, and each
sum runs over K in order, whatever tile it is in: the result of a row has the same bits whichever rows stand beside it.

Whole numbers of 8 bits have a scale for each column, applied where a tile is written. They meet x in fp32 (`w8`) or,
where the processor multiplies whole numbers, x in bytes with a scale for each row (`i8`): by dot products of bytes, or
of pairs of 16 bits that a tile widens them to. The former take one side without a sign: x has 128 added, and 128 times
the sum of a column's weights is taken off again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from llvmlite import ir

from .ffi import Buffer, Frame, handler, register
from .groups import Groups, emit_expansion
from .jit import I1, I8, I32, I64, POINTER, VOID, Code, Value, function
from .matmul_tile import Tiles
from .threads import parallel_for
from .tile import WORD, Precision, tile
from .tokens import emit_rounding

_CHUNK_WORK = 1 << 19
"""Bytes of weights times rows (at least _STREAMED_ROWS) of one chunk of the parallel loop: 2 to 3 us on one core."""
_STREAMED_ROWS = 10
"""Rows below which reading the weights takes longer than the arithmetic."""
_MAX_CHUNKS = 64
_ROW_BYTES = 1 << 19
"""Bytes of x that stay in a core's second-level cache while panels pass by."""


@dataclass(frozen=True)
class _Kernels:
    """Emits the functions for weights of one type into a module; with `groups`, for such that groups.py expands."""

    module: ir.Module
    given: Precision
    groups: Groups | None = None

    @property
    def tiles(self) -> Tiles:
        return Tiles(self.module, self.given)

    def block(self) -> ir.Function:
        """block(x, w, words, num_groups, group_bytes, out, out_bytes, columns, rows, first, last, scales, row_scales):
        rows of x times panels first..last-1 of a weight that starts at w and has `columns` columns."""
        shape = tile()
        kinds = [POINTER, POINTER, I64, I64, I64, POINTER, I64, I64, I64, I64, I64, POINTER, POINTER]
        made, code = function(self.module, f"block.{self.given}", VOID, kinds)
        x, w, words, num_groups, group_bytes, out, out_bytes, columns, rows, first, last, scales, row_scales = made.args
        x_stride, out_stride = code.times(words, self.tiles.x_word), code.times(columns, out_bytes)
        panel_bytes = code.times(num_groups, group_bytes)
        tiles = {
            (count, panels): self.tiles.emit(count, panels, self.groups)
            for count in range(1, shape.rows + 1)
            for panels in {1, shape.panels(count)}
        }

        # Equal tiles: 13 rows are 7 and 6, not 12 and 1.
        num_tiles = code.ceil_div(rows, shape.rows)
        height = code.ceil_div(rows, num_tiles)
        # Each of a panel's tiles fetches its share of the next panel, so that memory works all the time.
        step = code.udiv(code.udiv(panel_bytes, words), num_tiles)

        def run(count: int, panels: int, row: Value, panel: Value, expanded: Value | None = None) -> None:
            """A tile of neighbouring panels, or of one that was expanded."""
            start = code.times(panel, shape.columns)
            share = code.times(code.udiv(row, height), code.times(words, step))
            plain = expanded is not None
            code.call(
                dense[count] if plain else tiles[count, panels],
                [
                    code.at(x, code.times(row, x_stride)),
                    x_stride,
                    expanded if plain else code.at(w, code.times(panel, panel_bytes)),
                    words,
                    code.i64(1) if plain else num_groups,
                    code.times(words, shape.columns * WORD) if plain else group_bytes,
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

        def each_tile(panel: Value, expanded: Value | None, row: Value) -> None:
            end = code.append_basic_block("tile.end")
            choice = code.switch(code.least(height, code.sub(rows, row)), end)
            for count in range(1, shape.rows + 1):
                case = code.append_basic_block(f"tile{count}")
                choice.add_case(code.i64(count), case)
                code.position_at_end(case)
                run(count, 1, row, panel, expanded)
                code.branch(end)
            code.position_at_end(end)

        def each_panel(panel: Value) -> None:
            code.loop(rows, partial(each_tile, panel, None), step=height)

        code.position_at_end(bulk)
        if self.groups is not None:
            # What several tiles read is expanded once.
            with code.if_then(code.icmp_signed(">", rows, code.i64(shape.rows))):
                dense = {count: self.tiles.emit(count, 1) for count in range(1, shape.rows + 1)}
                expand = emit_expansion(self.module, self.groups)
                room = code.intrinsic("malloc", POINTER, code.times(words, shape.columns * WORD))

                def each_expanded_panel(panel: Value) -> None:
                    code.call(expand, [code.at(w, code.times(panel, panel_bytes)), num_groups, group_bytes, room])
                    code.loop(rows, partial(each_tile, panel, room), step=height)

                code.loop(last, each_expanded_panel, start=first)
                code.intrinsic("free", VOID, room)
                code.ret_void()
        code.loop(last, each_panel, start=first)
        code.ret_void()
        return made

    def _panels(self, code: Code, weights: Buffer, words: Value) -> tuple[Value, Value]:
        """How many groups a panel has, and the bytes of each; of panels without groups, those of all words."""
        if self.groups is None:
            return code.i64(1), code.times(words, tile().columns * WORD)
        return weights.size(2), weights.size(3)

    def _words(self, code: Code, x: Buffer, weights: Buffer) -> Value:
        """Words of weights that one column has."""
        return weights.size(2) if self.groups is None else code.udiv(x.size(1), code.i64(self.groups.pair))

    def linear(self, block: ir.Function) -> list[str]:
        """Handlers of linear(x [M, K], count [], then of each of some matrices its weights [S, panels, words, columns,
        group], number [] and, where they are scaled, scales [S, panels, 2, columns]) -> [M, N] of each matrix: the
        first `count` rows, zeros behind them. The chunks of all matrices are those of one parallel loop. Weights in
        groups are [S, panels, groups, bytes].

        Of i8, x comes as fp32 or bf16, and two further results are memory to round it in: [M, 4 words] and [M].
        """
        body, code = function(self.module, "linear.chunk", VOID, [POINTER, I64])
        shared = ("x", "row_scales", "out_bytes", "rows", "words", "high", "count", "matrices")
        job = _Job.of(code, body.args[0], shared)

        def find(at: Value, number: Value, start: Value) -> list[Value]:
            end = code.read(I64, job["matrices"], code.times(at, _MATRIX_BYTES))
            passed = code.icmp_signed(">=", body.args[1], end)
            return [code.add(number, code.zext(passed, I64)), code.select(passed, end, start)]

        number, start = code.loop(job["count"], find, [code.i64(0), code.i64(0)])
        matrix = code.at(job["matrices"], code.times(number, _MATRIX_BYTES), 8)
        job |= _Job.of(code, matrix, _MATRIX[1:])
        chunk = code.sub(body.args[1], start)
        part, band = code.urem(chunk, job["parts"]), code.udiv(chunk, job["parts"])
        row = code.times(band, job["high"])
        rows = code.least(job["high"], code.sub(job["rows"], row))
        self._run_block(code, block, job, code.i64(0), row, rows, code.times(part, job["wide"]))

        operands = 3 if self.tiles.scaled else 2

        def handle(frame: Frame, out_bytes: int, rounded_from: str | None = None) -> None:
            code, x = frame.code, frame.argument(0)
            num_matrices = code.udiv(code.sub(frame.num_arguments, code.i64(2)), code.i64(operands))
            words = self._words(code, x, frame.argument(2))
            rows = code.least(x.size(0), code.most(code.sext(code.read(I32, frame.argument(1).data), I64), 1))
            high = code.most(code.udiv(code.i64(_ROW_BYTES), code.times(words, self.tiles.x_word)), tile().rows)
            bands = code.ceil_div(rows, high)
            matrices = code.stack(MOST_MATRICES * _MATRIX_BYTES)

            def each_matrix(at: Value, chunks: Value) -> list[Value]:
                first = code.plus(code.times(at, operands), 2)
                weights, out = frame.argument(first), frame.result(at)
                panels, columns = weights.size(1), out.size(1)
                _clear_behind(code, out.data, rows, x.size(0), code.times(columns, out_bytes))
                num_groups, group_bytes = self._panels(code, weights, words)
                panel_bytes = code.times(num_groups, group_bytes)
                number = code.sext(code.read(I32, frame.argument(code.plus(first, 1)).data), I64)
                w = code.at(weights.data, code.times(number, code.times(panels, panel_bytes)))
                scales: Value = ir.Constant(POINTER, None)
                if self.tiles.scaled:
                    before = code.times(code.times(number, panels), _scale_bytes())
                    scales = code.at(frame.argument(code.plus(first, 2)).data, before)
                wide = _panels_of_a_chunk(code, panels, words, code.least(rows, high))
                parts = code.ceil_div(panels, wide)
                chunks = code.add(chunks, code.times(parts, bands))
                entry = code.at(matrices, code.times(at, _MATRIX_BYTES))
                values = (chunks, w, out.data, columns, panels, wide, parts, scales, num_groups, group_bytes)
                for field, value in enumerate(values):
                    code.write(value, entry, 8 * field)
                return [chunks]

            (chunks,) = code.loop(num_matrices, each_matrix, [code.i64(0)])
            numbers, row_scales = x.data, ir.Constant(POINTER, None)
            if rounded_from is not None:
                numbers, row_scales = (frame.result(code.plus(num_matrices, more)).data for more in range(2))
                emit_rounding(frame, self.module, rounded_from, x, rows, numbers, row_scales)
            values = (numbers, row_scales, code.i64(out_bytes), rows, words, high, num_matrices, matrices)
            job = _Job.new(code, values)
            code.call(parallel_for(self.module), [frame.pointer, chunks, code.address(body), job])

        if self.given != "i8":
            return self._handlers("linear", handle)
        return [
            name
            for kind in ("float32", "bfloat16")
            for name in self._handlers(f"linear_{kind}", partial(handle, rounded_from=kind))
        ]

    def grouped(self, block: ir.Function) -> list[str]:
        """Handlers of grouped(x [R, K], weights, number [], group_sizes [E]) -> [R, N]: matrix number + e for the rows
        of group e, zeros behind the last group. Scales are further operands, as in linear."""
        fields = ("x", "w", "out", "out_bytes", "words", "num_groups", "group_bytes", "columns", "panels", "wide")
        fields += ("parts", "table", *_SCALES)
        body, code = function(self.module, "grouped.chunk", VOID, [POINTER, I64])
        job = _Job.of(code, body.args[0], fields)
        part, entry = code.urem(body.args[1], job["parts"]), code.udiv(body.args[1], job["parts"])
        expert, row, rows = (code.read(I64, job["table"], code.times(entry, 24), 8 * at) for at in range(3))
        self._run_block(code, block, job, expert, row, rows, code.times(part, job["wide"]))

        def handle(frame: Frame, out_bytes: int) -> None:
            code = frame.code
            x, weights, sizes, out = frame.argument(0), frame.argument(1), frame.argument(3), frame.result(0)
            rows, panels, words = x.size(0), weights.size(1), self._words(code, x, weights)
            num_groups, group_bytes = self._panels(code, weights, words)
            w = _matrix(code, frame, code.times(panels, code.times(num_groups, group_bytes)))
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
            wide = _panels_of_a_chunk(code, panels, words, code.ceil_div(end, code.most(count, 1)))
            parts = code.ceil_div(panels, wide)
            values = (x.data, w, out.data, code.i64(out_bytes), words, num_groups, group_bytes, out.size(1), panels)
            job = _Job.new(code, (*values, wide, parts, table, *self._scales(frame, panels)))
            chunks = code.times(parts, count)
            code.call(parallel_for(self.module), [frame.pointer, chunks, code.address(body), job])
            code.intrinsic("free", VOID, table)

        return self._handlers("grouped", handle)

    def _run_block(
        self, code: Code, block: ir.Function, job: "_Job", matrix: Value, row: Value, rows: Value, first: Value
    ) -> None:
        """A chunk: `rows` rows from `row` on, times job["wide"] panels from `first` on, of one matrix of several."""
        words, panels = job["words"], job["panels"]
        matrix_bytes = code.times(code.times(job["num_groups"], job["group_bytes"]), panels)
        out_stride = code.times(job["columns"], job["out_bytes"])
        code.call(
            block,
            [
                code.at(job["x"], code.times(row, code.times(words, self.tiles.x_word))),
                code.at(job["w"], code.times(matrix, matrix_bytes)),
                words,
                job["num_groups"],
                job["group_bytes"],
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
        if not self.tiles.scaled:
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
_MATRIX = ("end", "w", "out", "columns", "panels", "wide", "parts", "scales", "num_groups", "group_bytes")
"""Of each matrix of a call, the number of the first chunk behind its own and what its chunks need."""
_MATRIX_BYTES = 8 * len(_MATRIX)
MOST_MATRICES = 4
"""Of one call."""


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
        pointers = ("x", "w", "out", "table", "matrices", *_SCALES)
        return cls({key: code.read(POINTER if key in pointers else I64, job, 8 * at) for at, key in enumerate(fields)})


def _matrix(code: Code, frame: Frame, matrix_bytes: Value) -> Value:
    """Where the matrix begins whose number is the third operand."""
    number = code.sext(code.read(I32, frame.argument(2).data), I64)
    return code.at(frame.argument(1).data, code.times(number, matrix_bytes))


def _clear_behind(code: Code, out: Value, first: Value, end: Value, stride: Value) -> None:
    """Zeros in rows first : end of a result."""
    behind, zero, plain = code.at(out, code.times(first, stride)), ir.Constant(I8, 0), ir.Constant(I1, 0)
    code.intrinsic("llvm.memset.p0.i64", VOID, behind, zero, code.times(code.sub(end, first), stride), plain)


def _panels_of_a_chunk(code: Code, panels: Value, words: Value, rows: Value) -> Value:
    """Panels worth a chunk of the parallel loop."""
    work = code.times(code.times(words, tile().columns * WORD), code.most(rows, _STREAMED_ROWS))
    enough = code.most(code.ceil_div(code.i64(_CHUNK_WORK), work), code.ceil_div(panels, _MAX_CHUNKS))
    side_by_side = tile().panels(1)
    several = code.times(code.ceil_div(enough, side_by_side), side_by_side)
    return code.select(code.icmp_signed("<=", rows, code.i64(tile().rows // 2)), several, enough)


def emitted(given: Precision, groups: Groups | None = None) -> tuple[ir.Module, list[str]]:
    """The kernels for weights of this type, or for such that are expanded to it; and the names of the handlers."""
    kernels = _Kernels(ir.Module(f"distaff_cpu_matmul_{given}"), given, groups)
    block = kernels.block()
    return kernels.module, kernels.linear(block) + kernels.grouped(block)


@cache
def targets(given: Precision, groups: Groups | None = None) -> dict[str, str]:
    """Custom call targets for weights of this type, by "linear_<weights>_<result>" and "grouped_<...>".

    The first call compiles and registers them.

    Raises:
        UnsupportedError: no machine code can be made here.
    """
    return register(*emitted(given, groups), optimise=False)
