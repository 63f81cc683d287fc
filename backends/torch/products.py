"""Matrix products."""

import math

from .names import DType, Value, torch
from .rules import Equation, Rule, is_float, permuted, reshaped


def _dot_general(eqn: Equation, x: Value, y: Value) -> Value:
    (x_sum, y_sum), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    x_free = [axis for axis in range(len(eqn.ins[0].shape)) if axis not in (*x_sum, *x_batch)]
    y_free = [axis for axis in range(len(eqn.ins[1].shape)) if axis not in (*y_sum, *y_batch)]
    rows, columns = _sizes(eqn, 0, x_free), _sizes(eqn, 1, y_free)
    tabled = eqn.reads_values and not x_batch and _is_widened(eqn, math.prod(rows))
    if not tabled:
        x, y = (_in_type(eqn, number, value) for number, value in enumerate((x, y)))
    batch, summed = _sizes(eqn, 0, x_batch), _sizes(eqn, 0, x_sum)
    left, right = permuted(x, (*x_batch, *x_free, *x_sum)), permuted(y, (*y_batch, *y_free, *y_sum))
    left = reshaped(left, (*batch, *rows, *summed), (*batch, math.prod(rows), math.prod(summed)))
    right = reshaped(right, (*batch, *columns, *summed), (*batch, math.prod(columns), math.prod(summed)))
    if tabled:
        product = eqn.call(widened, left, right)
        product = product if eqn.dtype() == torch.float32 else product.to(eqn.dtype())
    else:
        product = torch.matmul(left, right.transpose(-1, -2)) if batch else torch.nn.functional.linear(left, right)
        product = product if _multiplied_in(eqn) == eqn.dtype() else product.to(eqn.dtype())
    return reshaped(product, (*batch, math.prod(rows), math.prod(columns)), eqn.out.shape)


def _is_widened(eqn: Equation, rows: int) -> bool:
    """Whether matrices of 16 bits are multiplied in fp32: where numbers of 32 are asked for and the matrix is larger
    than caches, as that of the vocabulary; and where that is faster."""
    given = {eqn.dtype(aval) for aval in eqn.ins}
    if len(given) != 1 or not given <= _NARROW:
        return False
    if eqn.dtype() == torch.float32:
        return math.prod(eqn.ins[1].shape) > _TILE
    return eqn.dtype() in _NARROW and rows >= _WIDE_ROWS and capability() == "AVX2"


def capability() -> str:
    """Which of torch's kernels this processor takes, such as AVX2 or AVX512."""
    return torch.backends.cpu.get_cpu_capability()


def widened(x: Value, table: Value) -> Value:
    """x [T, K] times a table [N, K], both of 16 bits, in fp32. torch's products on the host have no wider result than
    operands; the table is converted a tile at a time, which stays in a cache, instead of as a whole in each step."""
    wide, rows = x.to(torch.float32), max(1, _TILE // max(1, table.shape[1]))
    out = wide.new_empty((x.shape[0], table.shape[0]))
    buffer = wide.new_empty((min(rows, table.shape[0]), table.shape[1]))
    for first in range(0, table.shape[0], rows):
        part = table[first : first + rows]
        tile = buffer[: part.shape[0]].copy_(part)
        out[:, first : first + rows] = torch.mm(wide, tile.t())
    return out


_WIDE_ROWS = 3
"""From how many rows on fp32 is faster where torch multiplies 16 bits number by number: with AVX2, at 9 GFLOP/s on a
Zen 3 core whose fp32 has 60. Two rows take as long as to convert the matrix."""

_NARROW = {torch.bfloat16, torch.float16}
_TILE = 2**19
"""Numbers of a table that are converted at once: 2 MiB in fp32."""


def _in_type(eqn: Equation, number: int, value: Value) -> Value:
    """An operand in the type in which it is multiplied."""
    given, wanted = eqn.dtype(eqn.ins[number]), _multiplied_in(eqn, number)
    return value if given == wanted else value.to(wanted)


def _multiplied_in(eqn: Equation, number: int = 0) -> DType:
    """The type in which an operand is multiplied: the result's, where that is the finer one."""
    given, wanted = eqn.dtype(eqn.ins[number]), eqn.dtype()
    return wanted if is_float(eqn.out) or wanted.itemsize >= given.itemsize else given


def _sizes(eqn: Equation, number: int, axes: tuple[int, ...] | list[int]) -> list[int]:
    return [eqn.ins[number].shape[axis] for axis in axes]


def _ragged_dot(eqn: Equation, x: Value, weight: Value, sizes: Value) -> Value:
    """Groups of rows by one matrix each; rows behind the last group are 0."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (x_sum, w_sum), batch = numbers.dot_dimension_numbers
    plain = tuple(x_sum) == (1,) and not batch[0] and tuple(numbers.lhs_ragged_dimensions) == (0,)
    if not plain or tuple(numbers.rhs_group_dimensions) != (0,) or len(eqn.ins[1].shape) != 3:
        return NotImplemented
    weight = weight if tuple(w_sum) == (2,) else weight.transpose(1, 2)
    return eqn.call(grouped if eqn.reads_values else grouped_static, x, weight, sizes, eqn.dtype())


def grouped(x: Value, weight: Value, sizes: Value, dtype: Value) -> Value:
    """Rows of x [R, I], in groups of `sizes` [E], times weight [E, O, I]; reads the sizes on the host."""
    out = x.new_zeros((x.shape[0], weight.shape[1]), dtype=dtype)
    first = 0
    for expert, size in enumerate(sizes.tolist()):
        if size:
            rows = x[first : first + size].to(dtype)
            out[first : first + size] = torch.nn.functional.linear(rows, weight[expert].to(dtype))
        first += size
    return out


def grouped_static(x: Value, weight: Value, sizes: Value, dtype: Value) -> Value:
    """The same in shapes that never change: every row by every matrix, of which it keeps its own group's. As many times
    the arithmetic as there are groups, but no wait."""
    row = torch.arange(x.shape[0], device=x.device)
    group = (row[:, None] >= torch.cumsum(sizes.to(torch.int64), dim=0)).sum(dim=1)
    out, wide = x.new_zeros((x.shape[0], weight.shape[1]), dtype=dtype), x.to(dtype)
    for number in range(weight.shape[0]):
        product = torch.nn.functional.linear(wide, weight[number].to(dtype))
        out = torch.where((group == number)[:, None], product, out)
    return out


RULES: dict[str, Rule] = {"dot_general": Rule(_dot_general, fresh=False), "ragged_dot_general": Rule(_ragged_dot)}
