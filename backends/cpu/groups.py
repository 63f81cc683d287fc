"""Panels whose numbers stay as they are stored, a scale for each group of K, and how a kernel expands them.

A panel is [groups, bytes]. In front of a group stand the scales of the panel's columns, then their minima, as they are
stored; behind them its numbers in the order of matmul.py's panels, a vector of `tile().lanes` of them after the other.
Of numbers that lie two in a byte, eight vectors make one of 32-bit words, the first one in the lowest bits: they are
shifted down and looked up in a table that a register holds.

What comes out are the bits of `dequantized`: number times scale, rounded, plus minimum, rounded, in fp32, and rounded
to the type of the activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llvmlite import ir

from ..quantized import HALF_BYTES, TABLES
from .attention_math import constant, load, rounded
from .jit import BF16, F32, I8, I32, I64, POINTER, VOID, Code, Value, features, function, vector
from .tile import WORD, Precision, tile

STEP: Final = 4
"""Rows of K that are expanded at once: eight vectors, whatever the order. Groups are made of so many."""
_VECTORS: Final = 8
_MEANT: Final = {
    "int4": tuple(float(number - 8) for number in range(16)),
    "uint4": tuple(float(number) for number in range(16)),
    "float4_e2m1fn": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
    **TABLES,
}
"""What the sixteen numbers of each kind mean."""
KINDS: Final = (*HALF_BYTES, "int8", "uint8")
SCALES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
"""Bytes of the types of scales; those of bytes are exponents of two."""


@dataclass(frozen=True)
class Groups:
    """What is known of panels when their kernels are made.

    Args:
        order: of the numbers, that of the kernels that take them expanded.
        kind, scales, minima: of Quantized, the last two by their types; None: there are no minima.
    """

    order: Precision
    kind: str
    scales: str
    minima: str | None

    @property
    def pair(self) -> int:
        """Numbers of a word."""
        return 2 if self.order == "bf16" else 1

    @property
    def in_halves(self) -> bool:
        return self.kind in HALF_BYTES

    @property
    def words(self) -> int:
        """Words of weights in a step."""
        return STEP // self.pair

    @property
    def head_bytes(self) -> int:
        """What stands in front of a group's numbers."""
        return tile().columns * (SCALES[self.scales] + (0 if self.minima is None else SCALES[self.minima]))

    @property
    def step_bytes(self) -> int:
        return STEP * tile().columns // (2 if self.in_halves else 1)

    def steps(self, code: Code, group_bytes: Value) -> Value:
        """Steps of a group."""
        return code.udiv(code.sub(group_bytes, code.i64(self.head_bytes)), code.i64(self.step_bytes))

    def factors(self, code: Code, start: Value) -> tuple[list[Value], list[Value]]:
        """Scales and minima of the group that begins there: for each vector of a row of words, in fp32."""
        scale = self._spread(code, self.scales, start)
        if self.minima is None:
            return scale, []
        return scale, self._spread(code, self.minima, code.at(start, tile().columns * SCALES[self.scales]))

    def expand(self, code: Code, where: Value, scales: Sequence[Value], minima: Sequence[Value]) -> list[list[Value]]:
        """A step's words, each as the vectors of a panel's columns, in bits."""
        values = [
            self._expanded(code, number, scales[at % len(scales)], minima[at % len(scales)] if minima else None)
            for at, number in enumerate(self._numbers(code, where))
        ]
        words = vector(I32, tile().lanes)
        if self.pair == 1:
            made = [code.bitcast(value, words) for value in values]
        else:
            made = [_pair(code, *pair) for pair in zip(values[::2], values[1::2], strict=True)]
        return [made[at : at + tile().vectors] for at in range(0, len(made), tile().vectors)]

    def _numbers(self, code: Code, where: Value) -> list[Value]:
        """The vectors of a step, in fp32."""
        lanes = tile().lanes
        words = vector(I32, lanes)
        if self.in_halves:
            word = code.read(words, where, align=1)
            shifted = [word] + [code.lshr(word, ir.Constant(words, [4 * at] * lanes)) for at in range(1, _VECTORS)]
            return [self._look_up(code, each) for each in shifted]
        widen = code.sext if self.kind == "int8" else code.zext
        parts = [code.read(vector(I8, lanes), where, at * lanes, align=1) for at in range(_VECTORS)]
        return [code.sitofp(widen(part, words), vector(F32, lanes)) for part in parts]

    def _look_up(self, code: Code, words: Value) -> Value:
        """What the lowest four bits of each word mean."""
        lanes, table = tile().lanes, _MEANT[self.kind]
        floats = vector(F32, lanes)
        if "avx512f" in features():  # looks at no other bits
            return code.intrinsic("llvm.x86.avx512.permvar.sf.512", floats, ir.Constant(floats, table), words)
        places = code.and_(words, ir.Constant(words.type, [15] * lanes))
        if self.kind in ("int4", "uint4"):
            return code.fadd(code.sitofp(places, floats), constant(table[0], lanes))
        entries: list[Value] = [constant(value, lanes) for value in table]
        for bit in (1, 2, 4, 8):
            mask = ir.Constant(words.type, [bit] * lanes)
            odd = code.icmp_unsigned("==", code.and_(places, mask), mask)
            entries = [code.select(odd, high, low) for low, high in zip(entries[::2], entries[1::2], strict=True)]
        return entries[0]

    def _expanded(self, code: Code, number: Value, scale: Value, minimum: Value | None) -> Value:
        scaled = code.fmul(number, scale)
        return scaled if minimum is None else code.fadd(scaled, minimum)

    def _spread(self, code: Code, kind: str, where: Value) -> list[Value]:
        """A number of each column as the vectors of a row of words, in which a column stands once for each of the
        `group` numbers of a word."""
        lanes, group = tile().lanes, self.pair
        made: list[Value] = []
        for at in range(tile().vectors):
            values = _load(code, kind, code.at(where, at * lanes * SCALES[kind]))
            for part in range(group):
                places = [(part * lanes + lane) // group for lane in range(lanes)]
                mask = ir.Constant(vector(I32, lanes), places)
                made.append(values if group == 1 else code.shuffle_vector(values, values, mask))
        return made


def emit_expansion(module: ir.Module, groups: Groups) -> ir.Function:
    """expand(panel, num_groups, group_bytes, out): a panel as matmul.py reads those without groups."""
    made, code = function(module, "expand", VOID, [POINTER, I64, I64, POINTER])
    panel, num_groups, group_bytes, out = made.args
    steps, width = groups.steps(code, group_bytes), tile().columns * WORD

    def each_group(group: Value) -> None:
        start = code.at(panel, code.times(group, group_bytes))
        factors = groups.factors(code, start)

        def each_step(step: Value) -> None:
            words = groups.expand(
                code, code.at(start, groups.head_bytes, code.times(step, groups.step_bytes)), *factors
            )
            target = code.at(out, code.times(code.plus(code.times(group, steps), step), groups.words * width))
            for at, word in enumerate(words):
                for number, values in enumerate(word):
                    code.write(values, target, at * width + number * WORD * tile().lanes, align=4)

        code.loop(steps, each_step)

    code.loop(num_groups, each_group)
    code.ret_void()
    return made


def _load(code: Code, kind: str, where: Value) -> Value:
    """Consecutive scales as fp32."""
    lanes = tile().lanes
    floats, words = vector(F32, lanes), vector(I32, lanes)
    if kind == "uint8":
        exponents = code.zext(code.read(vector(I8, lanes), where, align=1), words)
        return code.bitcast(code.shl(exponents, ir.Constant(words, [23] * lanes)), floats)
    if kind == "float16":
        return code.fpext(code.read(vector(ir.HalfType(), lanes), where, align=1), floats)
    return load(code, kind, lanes, where)


def _pair(code: Code, low: Value, high: Value) -> Value:
    """Two vectors of fp32, rounded to bf16, one behind the other in the words of one vector."""
    lanes = tile().lanes
    words = vector(I32, lanes)
    if lanes == 16 and "avx512bf16" in features():
        name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
        return code.bitcast(code.intrinsic(name, vector(BF16, 2 * lanes), high, low), words)
    low, high = (rounded(code, part, "bfloat16") for part in (low, high))
    both = code.shuffle_vector(low, high, ir.Constant(vector(I32, 2 * lanes), list(range(2 * lanes))))
    return code.bitcast(both, words)


def held_as(kind: str) -> str:
    """The type in which panels hold scales of a type: float16 that the processor does not widen itself as fp32."""
    alone = "f16c" in features() or "sse2" not in features()
    return kind if alone or kind != "float16" else "float32"
