"""Tiles of the matmul kernels: some rows of x times a few panels of packed weights, with the sums in registers.

matmul.py says how weights are packed, and loops over tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from llvmlite import ir

from .attention_math import rounded
from .jit import BF16, F32, I16, I32, I64, POINTER, VOID, Code, Value, features, function, processor, vector

Precision = Literal["f32", "bf16", "w8", "i8"]

WORD = 4
"""Bytes of a group: one element of a tile's vectors."""
_LINE = 64


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
    def scaled(self) -> bool:
        """Whether weights have scales."""
        return self.given in ("w8", "i8")

    def emit(self, rows: int, panels: int) -> ir.Function:
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
        panel_bytes = code.times(words, shape.columns * WORD)
        x_rows = [code.at(x, code.times(x_stride, row)) for row in range(rows)]
        panel_starts = [code.at(w, code.times(panel_bytes, panel)) for panel in range(panels)]
        zero = ir.Constant(vector(F32, shape.lanes), [0.0] * shape.lanes)
        if self.given == "i8":
            zero = ir.Constant(vector(I32, shape.lanes), [0] * shape.lanes)

        def accumulate(word: Value, *sums: Value) -> list[Value]:
            where = code.times(word, shape.columns * WORD)
            weights = [
                code.read(vector(I32, shape.lanes), start, where, number * shape.lanes * WORD, align=4)
                for start in panel_starts
                for number in range(shape.vectors)
            ]
            for panel in range(panels):
                for line in range(0, shape.columns * WORD, _LINE):
                    code.prefetch(code.at(ahead, code.times(panel_bytes, panel), code.times(word, step), line))
            for part, factors in enumerate(self._factors(code, weights)):
                new: list[Value] = []
                for row, start in enumerate(x_rows):
                    group = code.read(I32, start, code.times(word, self.x_word), WORD * part, align=2)
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

        if self.x_word == WORD:
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
