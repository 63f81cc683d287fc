"""Reading and writing at places that are computed: gather, scatter and the dynamic slices.

XLA's general forms become one indexing of torch each: the operand's indexed axes come first, whole ones stay whole.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.lax import GatherScatterMode

from .names import Value, torch
from .rules import (
    Equation,
    Rule,
    bits_of,
    copied,
    is_bool,
    is_float,
    is_unsigned,
    literal,
    permuted,
    reshaped,
)

_IN_PLACE = 2**14
"""Elements from which it pays to write into an operand instead of copying it."""

_UNINDEXED = {torch.float8_e4m3fn, torch.float8_e5m2}
"""Types that torch indexes by nothing but their bytes."""


@dataclass(frozen=True)
class _Places:
    """Where windows of an operand stand.

    `index` has a tensor for each of the axes `indexed`, all of one shape: the batch of starts, then the axes of windows
    that are no whole axes of the operand. `whole` are the axes that windows hold whole, `inside` tells [batch] which
    windows lie in the operand, and `partial` the axes of `indexed` whose windows are longer than 1.
    """

    indexed: list[int]
    whole: list[int]
    index: list[Value]
    inside: Value | None
    partial: list[int]


def _places(
    eqn: Equation, starts: Value, axes: Sequence[int], batching: Sequence[tuple[int, int]], sizes: Sequence[int],
    mode: Any,
) -> _Places:  # fmt: skip
    """Args:
    starts: [batch..., number of axes], `axes` says which axis each is of.
    batching: pairs of an axis of the operand and the axis of the batch that counts along it.
    sizes: of a window, 1 along batching axes.
    """
    operand, batch = eqn.ins[0].shape, eqn.ins[1].shape[:-1]
    counted = dict(batching)
    indexed = [axis for axis in range(len(operand)) if axis in axes or axis in counted or sizes[axis] != operand[axis]]
    whole = [axis for axis in range(len(operand)) if axis not in indexed]
    # A window that is as long as its axis can only start at 0, wherever it is told to.
    partial = [axis for axis in indexed if sizes[axis] != 1]
    rank = len(batch) + len(partial)
    index, inside = [], None
    checked = mode in (GatherScatterMode.FILL_OR_DROP, None)
    for axis in indexed:
        last = operand[axis] - sizes[axis]
        if axis in counted:
            along = counted[axis]
            at = torch.arange(operand[axis], device=eqn.device)
            at = at.reshape([-1 if number == along else 1 for number in range(rank)])
            index.append(at)
            continue
        if axis in axes:
            at = operator.getitem(starts, (..., list(axes).index(axis)))
            if is_unsigned(eqn.ins[1]):
                at = at.to(torch.int64) & 0xFFFFFFFF
            if checked:
                here = (at >= 0) & (at <= last)
                inside = here if inside is None else inside & here
            at = torch.clamp(at, 0, last).reshape([*batch, *[1] * len(partial)])
        else:
            at = torch.zeros([1] * rank, dtype=torch.int64, device=eqn.device)
        if axis in partial:
            offset = torch.arange(sizes[axis], device=eqn.device)
            place = len(batch) + partial.index(axis)
            at = at + offset.reshape([-1 if number == place else 1 for number in range(rank)])
        index.append(at)
    if not eqn.reads_values:  # torch_xla joins what it indexes by
        index = [each.to(torch.int64) for each in index]
    return _Places(indexed, whole, index, inside, partial)


def _gather(eqn: Equation, x: Value, starts: Value) -> Value:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    batching = list(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    at = _places(eqn, starts, _ints(numbers.start_index_map), batching, _ints(sizes), eqn.params["mode"])
    batch = eqn.ins[1].shape[:-1]
    if at.indexed:
        small = eqn.dtype() in _UNINDEXED
        out = permuted(x.view(torch.uint8) if small else x, (*at.indexed, *at.whole))
        out = operator.getitem(out, tuple(at.index))
        out = out.view(eqn.dtype()) if small else out
        lead = len(batch) + len(at.partial)
        shape = [*batch, *(sizes[axis] for axis in at.partial), *(sizes[axis] for axis in at.whole)]
        out = out.expand(shape) if lead else out
    else:
        shape = [*batch, *(sizes[axis] for axis in at.whole)]
        out = x.expand(shape)
    # Now [batch..., partial windows..., whole windows...]; the result has the windows' axes in the operand's order.
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    held = [*at.partial, *at.whole]
    order = [len(batch) + held.index(axis) if axis in held else None for axis in range(len(sizes)) if axis not in gone]
    places = _result_order(eqn, len(batch), order, _ints(numbers.offset_dims))
    used = [place for place in places if place is not None]
    missing = [place for place in range(len(shape)) if place not in used]  # collapsed axes of length 1
    axes = [*used, *missing]
    out = reshaped(permuted(out, axes), [shape[axis] for axis in axes], eqn.out.shape)
    if at.inside is not None:
        spread = [1] * len(eqn.out.shape)
        rows = [axis for axis in range(len(spread)) if axis not in numbers.offset_dims]
        for axis, size in zip(rows, batch, strict=True):
            spread[axis] = size
        out = torch.where(at.inside.reshape(spread), out, _fill(eqn))
    return out


def _ints(values: Sequence[Any]) -> list[int]:
    """vmap leaves numpy's numbers among the dimension numbers."""
    return [int(value) for value in values]


def _result_order(
    eqn: Equation, num_batch: int, windows: list[int | None], offset_dims: Sequence[int]
) -> list[int | None]:
    """For each axis of the result the axis of what was read; None is a new axis of length 1."""
    window, rows = iter(windows), iter(range(num_batch))
    return [next(window) if axis in offset_dims else next(rows) for axis in range(len(eqn.out.shape))]


def _fill(eqn: Equation) -> Value:
    """What JAX gives where there is nothing to read: NaN, True, the largest unsigned or the least signed number."""
    fill = eqn.params.get("fill_value")
    if fill is not None:
        return eqn.constant(literal(fill, eqn.out), eqn.out)
    if is_float(eqn.out):
        return eqn.constant(float("nan"), eqn.out)
    if is_bool(eqn.out):
        return eqn.constant(True, eqn.out)
    bits = bits_of(eqn.out)
    largest = 255 if eqn.dtype() == torch.uint8 else -1
    return eqn.constant(largest if is_unsigned(eqn.out) else -(2 ** (bits - 1)), eqn.out)


def _scatter(eqn: Equation, x: Value, starts: Value, updates: Value) -> Value:
    numbers, operand = eqn.params["dimension_numbers"], eqn.ins[0].shape
    batching = list(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    inserted = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = iter(numbers.update_window_dims)
    of_axis = {axis: next(window) for axis in range(len(operand)) if axis not in inserted}  # operand's -> updates' axis
    sizes = [1 if axis in inserted else eqn.ins[2].shape[of_axis[axis]] for axis in range(len(operand))]
    at = _places(eqn, starts, _ints(numbers.scatter_dims_to_operand_dims), batching, _ints(sizes), eqn.params["mode"])
    batch = eqn.ins[1].shape[:-1]
    rows = [axis for axis in range(len(eqn.ins[2].shape)) if axis not in numbers.update_window_dims]
    thin = [of_axis[axis] for axis in at.indexed if axis not in at.partial and axis in of_axis]  # windows of length 1
    order = _ints([*rows, *(of_axis[axis] for axis in (*at.partial, *at.whole) if axis in of_axis), *thin])
    lead = [*batch, *(sizes[axis] for axis in at.partial)]
    given, wanted = [eqn.ins[2].shape[axis] for axis in order], [*lead, *(operand[axis] for axis in at.whole)]
    updates = reshaped(permuted(updates, order), given, wanted)
    if not at.indexed:
        return NotImplemented
    inside = None if at.inside is None else at.inside.reshape([*batch, *[1] * len(at.partial)]).expand(lead)
    accumulate = eqn.op.name == "scatter-add"
    index = [each.expand(lead) for each in at.index]
    x = x if 0 in eqn.may_write else eqn.call(copied, x)
    turned = permuted(x, (*at.indexed, *at.whole))
    if not eqn.reads_values and inside is not None:
        index, updates = eqn.call(all_inside, turned, index, updates, inside, accumulate)
        index, inside = [operator.getitem(index, number) for number in range(len(at.index))], None
    eqn.call(write, turned, index, updates, inside, accumulate)
    return x


def all_inside(
    x: Value, index: list[Value], updates: Value, inside: Value, accumulate: bool
) -> tuple[list[Value], Value]:
    """Places and updates that do the same where some are not `inside`, in shapes that never change: those write what
    the first one inside writes, to its place, or where there is none what stands there. What is added is 0 there."""
    spread = inside.reshape(*inside.shape, *[1] * (updates.dim() - inside.dim()))
    if accumulate:
        return index, torch.where(spread, updates, torch.zeros_like(updates))
    flat = inside.reshape(-1)
    first = torch.argmax(flat.to(torch.int32)).reshape(1)
    places = [each.reshape(-1)[first] for each in index]
    rows = updates.reshape(flat.shape[0], -1)
    there = x[tuple(places)].reshape(1, -1)
    kept = torch.where(flat.any(), rows[first], there).reshape(updates.shape[inside.dim() :])
    moved = [torch.where(inside, each, place) for each, place in zip(index, places, strict=True)]
    return moved, torch.where(spread, updates, kept)


def write(x: Value, index: list[Value], updates: Value, inside: Value | None, accumulate: bool) -> None:
    """Writes rows `updates` at the places `index` of x, or adds them, where they are `inside` (None: all are)."""
    if inside is not None:
        index, updates = [each[inside] for each in index], updates[inside]
    x.index_put_(tuple(index), updates, accumulate=accumulate)


def _dynamic_slice(eqn: Equation, x: Value, *starts: Value) -> Value:
    sizes = eqn.params["slice_sizes"]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        total = eqn.ins[0].shape[axis]
        if size == total:
            continue
        if isinstance(start, int):
            x = x.narrow(axis, min(max(start, 0), total - size), size)
            continue
        first = torch.clamp(start, 0, total - size)
        x = torch.index_select(x, axis, first + torch.arange(size, device=eqn.device))
    return x


def _dynamic_update_slice(eqn: Equation, x: Value, update: Value, *starts: Value) -> Value:
    operand, sizes = eqn.ins[0].shape, eqn.ins[1].shape
    cut = [axis for axis in range(len(operand)) if sizes[axis] != operand[axis]]
    if not cut:
        return eqn.call(copied, update)
    index = []
    for place, axis in enumerate(cut):
        last = operand[axis] - sizes[axis]
        start = starts[axis]
        first = min(max(start, 0), last) if isinstance(start, int) else torch.clamp(start, 0, last)
        along = [-1 if number == place else 1 for number in range(len(cut))]
        index.append((torch.arange(sizes[axis], device=eqn.device) + first).reshape(along))
    whole = [axis for axis in range(len(operand)) if axis not in cut]
    order = [*cut, *whole]
    x = x if 0 in eqn.may_write else eqn.call(copied, x)
    eqn.call(write, permuted(x, order), index, permuted(update, order), None, False)
    return x


def writes(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an operation writes into its first operand, of this shape, where it may."""
    return name in _WRITERS and math.prod(shape) >= _IN_PLACE


_WRITERS = ("scatter", "scatter-add", "dynamic_update_slice")

RULES: dict[str, Rule] = {
    "gather": Rule(_gather, fresh=False),
    "scatter": Rule(_scatter),
    "scatter-add": Rule(_scatter),
    "dynamic_slice": Rule(_dynamic_slice, scalars=True, fresh=False),
    "dynamic_update_slice": Rule(_dynamic_update_slice, scalars=True, fresh=False),
}
