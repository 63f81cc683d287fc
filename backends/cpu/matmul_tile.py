"""Tiles of the matmul kernels: some rows of x times a few panels of packed weights, with the sums in registers.

matmul.py and groups.py say how weights are packed; the former loops over tiles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from .attention_math import rounded
from .groups import Groups
from .jit import BF16, F32, I16, I32, I64, POINTER, VOID, Code, Value, function, vector
from .tile import LINE, PAIRS, WORD, Precision, dots_bytes, multiplies_bf16, tile


@dataclass(frozen=True)
class Tiles:
    """Emits tiles for weights of one type into a module."""

    module: ir.Module
    given: Precision

    @property
    def x_word(self) -> int:
        """Bytes of x that one word of weights meets."""
        if self.given == "w8":
            return 16
        return 8 if self.given == "bf16" and not multiplies_bf16() else 4

    @property
    def paired(self) -> bool:
        """Whether bytes are widened to 16 bits: the first and the third of a word, then the second and the fourth."""
        return self.given == "i8" and not dots_bytes()

    @property
    def scaled(self) -> bool:
        """Whether weights have scales."""
        return self.given in ("w8", "i8")

    def emit(self, rows: int, panels: int, groups: Groups | None = None) -> ir.Function:
        """tile(x, x_stride, w, words, num_groups, group_bytes, out, out_stride, out_bytes, columns, ahead, step,
        scales, row_scales): rows of x times neighbouring panels, written as fp32 or, if out_bytes is 2, bf16. With
        `groups` the panels are those of groups.py, and expanded in registers.

        Strides are in bytes; `columns` is how many of the panels' columns exist, and only those are written. With
        each word, memory `step` bytes further behind `ahead` is asked for: the panels that come next. Of weights that
        have them, `scales` are the first panel's [panels, 2, columns], and `row_scales` those of x.
        """
        shape, name = tile(), f"tile.{'groups' if groups else self.given}.{rows}.{panels}"
        kinds = [POINTER, I64, POINTER, I64, I64, I64, POINTER, I64, I64, I64, POINTER, I64, POINTER, POINTER]
        made, code = function(self.module, name, VOID, kinds)
        x, x_stride, w, words, num_groups, group_bytes, out, out_stride, out_bytes, columns, ahead, step = made.args[
            :12
        ]
        scales, row_scales = made.args[12:]
        panel_bytes = code.times(num_groups, group_bytes)
        x_rows = [code.at(x, code.times(x_stride, row)) for row in range(rows)]
        panel_starts = [code.at(w, code.times(panel_bytes, panel)) for panel in range(panels)]
        next_starts = [code.at(ahead, code.times(panel_bytes, panel)) for panel in range(panels)]
        if groups is None:
            sums = self._sums(code, x_rows, panel_starts, next_starts, words, step)
        else:
            sums = self._sums_of_groups(code, groups, x_rows, panel_starts, next_starts, num_groups, group_bytes)
        if self.scaled:
            sums = self._scaled(code, sums, rows, scales, row_scales)
        full = code.icmp_signed(">=", columns, code.i64(panels * shape.columns))
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

    def _sums(
        self,
        code: Code,
        x_rows: Sequence[Value],
        panel_starts: Sequence[Value],
        next_starts: Sequence[Value],
        words: Value,
        step: Value,
    ) -> list[Value]:
        """Each row times each panel: of a row the vectors of all panels, then those of the next row."""
        shape = tile()

        def accumulate(word: Value, *sums: Value) -> list[Value]:
            where = code.times(word, shape.columns * WORD)
            weights = [
                code.read(vector(I32, shape.lanes), start, where, number * shape.lanes * WORD, align=4)
                for start in panel_starts
                for number in range(shape.vectors)
            ]
            for start in next_starts:
                for line in range(0, shape.columns * WORD, LINE):
                    code.prefetch(code.at(start, code.times(word, step), line))
            return self._added(code, sums, weights, x_rows, code.times(word, self.x_word))

        return code.loop(words, accumulate, self._zeros(len(x_rows) * len(panel_starts)))

    def _sums_of_groups(
        self,
        code: Code,
        groups: Groups,
        x_rows: Sequence[Value],
        panel_starts: Sequence[Value],
        next_starts: Sequence[Value],
        num_groups: Value,
        group_bytes: Value,
    ) -> list[Value]:
        """As _sums, of panels of groups: a panel's step is expanded and multiplied before the next one's."""
        rows, panels, per_panel = len(x_rows), len(panel_starts), tile().vectors
        steps = groups.steps(code, group_bytes)

        def each_group(group: Value, *sums: Value) -> list[Value]:
            start = code.times(group, group_bytes)
            factors = [groups.factors(code, code.at(panel, start)) for panel in panel_starts]
            x_start = code.times(code.times(group, steps), groups.words * self.x_word)

            def each_step(step: Value, *sums: Value) -> list[Value]:
                made = list(sums)
                where = code.plus(code.plus(start, groups.head_bytes), code.times(step, groups.step_bytes))
                x_step = code.plus(x_start, code.times(step, groups.words * self.x_word))
                for panel in range(panels):
                    for line in range(0, groups.step_bytes, LINE):
                        code.prefetch(code.at(next_starts[panel], where, line))
                    words = groups.expand(code, code.at(panel_starts[panel], where), *factors[panel])
                    places = [
                        (row * panels + panel) * per_panel + number
                        for row in range(rows)
                        for number in range(per_panel)
                    ]
                    these = [made[place] for place in places]
                    for word, weights in enumerate(words):
                        these = self._added(code, these, weights, x_rows, code.plus(x_step, word * self.x_word))
                    for place, value in zip(places, these, strict=True):
                        made[place] = value
                return made

            return code.loop(steps, each_step, sums)

        return code.loop(num_groups, each_group, self._zeros(rows * panels))

    def _zeros(self, panels: int) -> list[Value]:
        """Sums of so many panels' columns."""
        element = I32 if self.given == "i8" else F32
        zero = ir.Constant(vector(element, tile().lanes), [0 if element is I32 else 0.0] * tile().lanes)
        return [zero] * (panels * tile().vectors)

    def _added(
        self, code: Code, sums: Sequence[Value], weights: list[Value], x_rows: Sequence[Value], where: Value
    ) -> list[Value]:
        """The word of x there in each row, times vectors of weights, added to the sums of each row."""
        lanes, vectors = tile().lanes, len(weights)
        for part, factors in enumerate(self._factors(code, weights)):
            new: list[Value] = []
            for row, start in enumerate(x_rows):
                group = code.splat(code.read(I32, start, where, 0 if self.paired else WORD * part, align=2), lanes)
                if self.paired:
                    group = self._pairs(code, group, part, signed=False)
                these = sums[row * vectors : (row + 1) * vectors]
                # Pinned, or LLVM loads all of x first and runs out of registers.
                new += code.pin([self._multiply(code, *each, group) for each in zip(these, factors, strict=True)])
            sums = new
        return list(sums)

    def _factors(self, code: Code, weights: list[Value]) -> Iterator[list[Value]]:
        """What the words of weights hold for each word of x in turn: themselves, each of two bf16 or each of four
        bytes as fp32."""
        words = weights[0].type

        def constant(number: int) -> Value:
            return ir.Constant(words, [number] * words.count)

        if self.paired:
            for part in range(2):
                yield [self._pairs(code, word, part, signed=True) for word in weights]
        elif self.x_word == WORD:
            yield weights
        elif self.given == "bf16":  # the upper half of an fp32
            yield [code.shl(word, constant(16)) for word in weights]
            yield [code.and_(word, constant(0xFFFF0000)) for word in weights]
        else:
            for above in (24, 16, 8, 0):
                up = [code.shl(word, constant(above)) for word in weights]
                whole = [code.ashr(word, constant(24)) for word in up]
                yield [code.sitofp(word, vector(F32, words.count)) for word in whole]

    def _pairs(self, code: Code, words: Value, part: int, *, signed: bool) -> Value:
        """Two of the four bytes of each word, in 16 bits each."""
        kind = vector(I16, 2 * tile().lanes)
        halves, eight = code.bitcast(words, kind), ir.Constant(kind, [8] * kind.count)
        if part == 0:
            halves = code.shl(halves, eight)
        return code.ashr(halves, eight) if signed else code.lshr(halves, eight)

    def _multiply(self, code: Code, total: Value, weights: Value, group: Value) -> Value:
        """total + weights * group."""
        lanes = tile().lanes
        floats = vector(F32, lanes)
        if self.paired:
            return code.add(total, code.intrinsic(PAIRS[lanes][1], total.type, group, weights))
        if self.given == "i8":
            return code.intrinsic("llvm.x86.avx512.vpdpbusd.512", total.type, total, group, weights)
        if self.given == "bf16" and self.x_word == WORD:
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
                    value = rounded(code, value, "bfloat16")
                target = code.at(out, first * out_bytes)
                if mask is None:
                    code.write(value, target, align=out_bytes)
                else:
                    name = f"llvm.masked.store.v{lanes}{'i16' if kind is I16 else 'f32'}.p0"
                    code.intrinsic(name, VOID, value, target, ir.Constant(I32, out_bytes), mask)
