"""How the matmul kernels cut their work on this processor, and what they multiply a word of weights by."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from .jit import features, processor

Precision = Literal["f32", "bf16", "w8", "i8"]
SHORT: Final[Mapping[str, Precision]] = {"float32": "f32", "bfloat16": "bf16"}
"""What kernels call the types of activations and results."""

WORD = 4
"""Bytes of a group: one element of a tile's vectors."""
LINE = 64
"""Bytes that are fetched at once."""


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
def dots_bytes() -> bool:
    """Whether dot products of four bytes are there."""
    return "avx512vnni" in features()


PAIRS: Final[Mapping[int, tuple[str, str]]] = {
    16: ("avx512bw", "llvm.x86.avx512.pmaddw.d.512"),
    8: ("avx2", "llvm.x86.avx2.pmadd.wd"),
    4: ("sse2", "llvm.x86.sse2.pmadd.wd"),
}
"""What multiplies pairs of 16 bits and adds them up in 32, by the lanes of a tile: the extension, and LLVM's name."""


@cache
def multiplies_bytes() -> bool:
    """Whether bytes are multiplied as whole numbers, with four or, widened to 16 bits, with two at once: as many of
    these as of fp32 take half the time, and sums are exact."""
    return dots_bytes() or PAIRS[tile().lanes][0] in features()
