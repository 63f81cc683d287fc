"""Calls of operations that reshape, pick, sort and reduce arrays."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .drawn import EXACT, KINDS, Case, Draw
from .test_elementwise import FLOATS, INTEGERS


def clamp(draw: Draw) -> Case:
    dtype, shape = draw.of(*EXACT), draw.shape()
    low, high = np.sort(draw.array(dtype, (2,), special=False))
    return Case(lambda x: lax.clamp(low, x, high), (draw.array(dtype, shape),))


def power(draw: Draw) -> Case:
    shape = draw.shape()
    x = draw.array("float32", shape, special=False)
    if draw.of(True, False):
        return Case(lax.pow, (np.abs(x), draw.array("float32", shape, scale=2, special=False)), 64)
    return Case(lax.pow, (x, draw.below(5, shape, low=-3)), 16)


def integer_power(draw: Draw) -> Case:
    exponent, dtype = draw.whole(0, 5), draw.of(*EXACT)
    return Case(lambda x: lax.integer_pow(x, exponent), (draw.array(dtype, draw.shape()),))


def rounding(draw: Draw) -> Case:
    how = draw.of(lax.RoundingMethod.TO_NEAREST_EVEN, lax.RoundingMethod.AWAY_FROM_ZERO)
    return Case(lambda x: lax.round(x, how), (draw.array(draw.of(*FLOATS), draw.shape()),))


def select(draw: Draw) -> Case:
    dtype, shape, count = draw.of(*KINDS), draw.shape(), draw.whole(2, 4)
    cases = [draw.array(dtype, shape) for _ in range(count)]
    which = draw.array("bool", shape) if count == 2 else draw.below(count, shape)
    return Case(lambda which, *cases: lax.select_n(which, *cases), (which, *cases))


def convert(draw: Draw) -> Case:
    given, wanted = draw.of(*KINDS), draw.of(*KINDS)
    x = draw.array(given, draw.shape())
    if given in FLOATS and wanted in INTEGERS:  # out of range is the processor's choice in XLA
        low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
        with np.errstate(invalid="ignore"):
            wide = x.astype(np.float64)
            x = np.where((wide > low) & (wide < high), x, np.zeros_like(x))
    return Case(lambda x: lax.convert_element_type(x, jnp.dtype(wanted)), (x,))


def bitcast(draw: Draw) -> Case:
    given, wanted = draw.of(("float32", "uint32"), ("uint32", "int32"), ("int16", "bfloat16"), ("uint32", "uint8"))
    x = draw.array(given, draw.shape(), special=False)
    if wanted == "bfloat16":
        x &= 0x7F7F  # no NaN, of which there are many
    return Case(lambda x: lax.bitcast_convert_type(x, jnp.dtype(wanted)), (x,))


def reshaped(draw: Draw) -> Case:
    shape = draw.shape()
    x, order = draw.array(draw.of(*KINDS), shape), draw.order(len(shape))
    target = (math.prod(shape),) if draw.of(True, False) else (1, *shape[::-1])
    return Case(lambda x: lax.reshape(x, target, dimensions=order if order != sorted(order) else None), (x,))


def broadcast(draw: Draw) -> Case:
    shape, ahead = draw.shape(), draw.shape(high=2)
    x, dims = draw.array(draw.of(*KINDS), shape), tuple(range(len(ahead), len(ahead) + len(shape)))
    target = (*ahead, *(draw.whole(1, 4) if side == 1 else side for side in shape))
    return Case(lambda x: lax.broadcast_in_dim(x, target, dims), (x,))


def sliced(draw: Draw) -> Case:
    shape = draw.shape(low=1, least=1)
    starts = tuple(draw.whole(0, side) for side in shape)
    limits = tuple(draw.whole(start, side) for start, side in zip(starts, shape, strict=True))
    strides = tuple(draw.whole(1, 3) for _ in shape)
    return Case(lambda x: lax.slice(x, starts, limits, strides), (draw.array(draw.of(*KINDS), shape),))


def joined(function: Callable[..., Any], *, same: bool) -> Any:
    def case(draw: Draw) -> Case:
        dtype, shape, count = draw.of(*KINDS), draw.shape(low=1), draw.whole(1, 3)
        axis = draw.whole(0, len(shape) - 1)
        lens = [shape[axis] if same else draw.whole(0, 4) for _ in range(count)]
        parts = tuple(draw.array(dtype, (*shape[:axis], size, *shape[axis + 1 :])) for size in lens)
        return Case(lambda *parts: function(parts, axis), parts)

    return case


def split(draw: Draw) -> Case:
    shape = draw.shape(low=1)
    axis = draw.whole(0, len(shape) - 1)
    cut = draw.whole(0, shape[axis])
    sizes = (cut, shape[axis] - cut)
    return Case(lambda x: lax.split(x, sizes, axis), (draw.array(draw.of(*KINDS), shape),))


def unstacked(draw: Draw) -> Case:
    shape = draw.shape(low=1, least=1)
    axis = draw.whole(0, len(shape) - 1)
    return Case(lambda x: jnp.unstack(x, axis=axis), (draw.array(draw.of(*KINDS), shape),))


def padded(draw: Draw) -> Case:
    shape, dtype = draw.shape(low=1), draw.of(*KINDS)
    sides = [(draw.whole(-1 if side else 0, 2), draw.whole(0, 2), 0) for side in shape]
    if draw.of(True, False):
        known = draw.array(dtype, ())[()]
        return Case(lambda x: lax.pad(x, known, sides), (draw.array(dtype, shape),))
    return Case(lambda x, fill: lax.pad(x, fill, sides), (draw.array(dtype, shape), draw.array(dtype, ())))


def counted(draw: Draw) -> Case:
    shape, dtype = draw.shape(low=1), draw.of("int32", "uint32", "uint8", "float32", "bfloat16")
    axis = draw.whole(0, len(shape) - 1)
    return Case(lambda x: lax.broadcasted_iota(jnp.dtype(dtype), shape, axis) + x, (draw.array(dtype, ()),))


def reduction(function: Callable[..., Any], dtypes: tuple[str, ...], *, rounds: bool = False) -> Any:
    """Floats that are summed are whole numbers, so that their order does not matter."""

    def case(draw: Draw) -> Case:
        dtype, shape = draw.of(*dtypes), draw.shape(low=1, least=1)
        axes = tuple(sorted(draw.order(len(shape))[: draw.whole(1, len(shape))]))
        x = draw.below(4, shape).astype(dtype) if rounds and dtype == "float32" else draw.array(dtype, shape)
        return Case(lambda x: function(x, axes), (x,))

    return case


def along(function: Callable[..., Any], dtypes: tuple[str, ...], ulps: float = 0) -> Any:
    def case(draw: Draw) -> Case:
        dtype, shape, reverse = draw.of(*dtypes), draw.shape(low=1, least=1), draw.of(True, False)
        axis = draw.whole(0, len(shape) - 1)
        x = draw.below(3, shape).astype(dtype) if dtype == "float32" else draw.array(dtype, shape)
        return Case(lambda x: function(x, axis, reverse), (x,), ulps, 1e-6 if ulps else 0)

    return case


def extreme_place(function: Callable[..., Any]) -> Any:
    def case(draw: Draw) -> Case:
        shape = draw.shape(low=1, least=1)
        axis = draw.whole(0, len(shape) - 1)
        return Case(lambda x: function(x, axis, jnp.int32), (draw.array(draw.of(*KINDS), shape),))

    return case


def combined(draw: Draw) -> Case:
    shape = draw.shape(low=1, least=1)
    axes = tuple(sorted(draw.order(len(shape))[: draw.whole(1, len(shape))]))
    x = draw.array("float32", shape, special=False)
    return Case(lambda x: lax.reduce(x, np.float32(-9e9), lambda a, b: jnp.where(a > b, a, b), axes), (x,))


def sorting(draw: Draw) -> Case:
    shape, dtype, keys = draw.shape(low=1), draw.of(*EXACT), draw.whole(1, 2)
    axis = draw.whole(0, len(shape) - 1)
    x = draw.array(dtype, shape)
    place = draw.below(3, shape)
    return Case(lambda x, place: lax.sort((x, place, x), dimension=axis, num_keys=keys, is_stable=True), (x, place))


def largest(draw: Draw) -> Case:
    shape, dtype = draw.shape(low=1, least=1), draw.of("float32", "bfloat16", "int32", "uint32")
    x = draw.array(dtype, shape, special=False)
    few = draw.whole(0, shape[-1])
    return Case(lambda x: lax.top_k(x, few), (np.where(draw.array("bool", shape), x, x.dtype.type(2)),))


def searched(side: str) -> Any:
    """`searchsorted` orders all floats, NaN last."""

    def case(draw: Draw) -> Case:
        table = np.sort(draw.array("float32", (draw.whole(1, 9),)))
        wanted = draw.array("float32", draw.shape())
        return Case(lambda table, x: jnp.searchsorted(table, x, side=side), (table, wanted))

    return case


def read(draw: Draw) -> Case:
    shape, mode = draw.shape(low=1, least=1), draw.of("clip", "fill")
    axis = draw.whole(0, len(shape) - 1)
    ids = draw.below(shape[axis] + 2, draw.shape(high=2), low=-shape[axis] - 1)
    x = draw.array(draw.of(*KINDS), shape)
    return Case(lambda x, ids: jnp.take(x, ids, axis=axis, mode=mode), (x, ids))


def written(how: str) -> Any:
    def case(draw: Draw) -> Case:
        shape, dtype = draw.shape(low=1, least=1), draw.of("float32", "int32", "uint32", "uint8")
        rows = shape[0]
        ids = np.asarray(draw.order(rows)[: draw.whole(1, rows)], np.int32) + draw.whole(0, 2)
        if how == "add":
            ids = draw.below(rows + 1, (draw.whole(1, 6),))
        new = draw.array(dtype, (len(ids), *shape[1:]), special=False)
        if dtype == "float32":
            new = np.trunc(new)
        x = draw.below(9, shape).astype(dtype)
        return Case(lambda x, ids, new: getattr(x.at[ids], how)(new, mode="drop"), (x, ids, new))

    return case


def window(draw: Draw) -> tuple[np.ndarray, list[np.int32], tuple[int, ...]]:
    shape = draw.shape(low=1, least=1)
    starts = [np.int32(draw.whole(-2, side + 1)) for side in shape]
    return draw.array(draw.of(*KINDS), shape), starts, tuple(draw.whole(1, side) for side in shape)


def window_read(draw: Draw) -> Case:
    x, starts, sizes = window(draw)
    return Case(lambda x, *starts: lax.dynamic_slice(x, starts, sizes), (x, *starts))


def window_written(draw: Draw) -> Case:
    x, starts, sizes = window(draw)
    new = draw.array(str(x.dtype), sizes)
    return Case(lambda x, new, *starts: lax.dynamic_update_slice(x, new, starts), (x, new, *starts))
