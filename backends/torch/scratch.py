"""How much memory a program takes beside what it is given, asked before a device records it."""

import math
from collections.abc import Mapping

from .alias_analysis import Ownership
from .dtypes import torch_dtype
from .flat_jaxpr import Aval, FlatJaxpr, Op


def scratch_bytes(program: FlatJaxpr, known: Ownership, inside: Mapping[int, int]) -> int:
    """The most bytes that are alive at once, by the program's order; views take none.

    Args:
        known: which values have memory of their own.
        inside: what the programs inside an operation take, by the operation's number.
    """
    last, alive, most = program.last_uses(), dict[int, int](), 0
    for number, op in enumerate(program.ops):
        for value in op.outs:
            if known.roots[value] == {value}:
                alive[value] = bytes_of(program.avals[value])
        most = max(most, sum(alive.values()) + inside.get(number, 0) + _attention(program, op))
        for value in [value for value in alive if last.get(value, -1) <= number]:
            del alive[value]
    return most


def bytes_of(aval: Aval) -> int:
    """What the tensor that carries a value takes."""
    return math.prod(aval.shape) * torch_dtype(aval.dtype).itemsize


def _attention(program: FlatJaxpr, op: Op) -> int:
    """Pages gathered for every row, in both forms, and the scores: what attention of fixed shapes takes."""
    if op.name != "ragged_attention":
        return 0
    q, cache, table = (program.aval(op.ins[place]) for place in (0, 3, 3 + len(op.outs)))
    rows, pages = table.shape
    positions = pages * cache.shape[2]
    gathered = rows * positions * math.prod(cache.shape[3:]) * torch_dtype(cache.dtype).itemsize
    return 2 * gathered + 4 * q.shape[0] * q.shape[1] * positions
