"""Every rule against JAX: shapes, types and numbers drawn by hypothesis, among them those that wrap around, NaN,
infinities and signed zeros; nothing that has a rule is left out."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.random import threefry2x32_p

from distaff.backends.reference import ReferenceBackend
from distaff.backends.torch import idioms
from distaff.backends.torch.control_flow import NAMES, inner_jaxprs
from distaff.backends.torch.flat_jaxpr import flatten_jaxpr
from distaff.backends.torch.primitives import RULES

from .running import compare
from .test_elementwise import FLOATS, INTEGERS, numbers

EXAMPLES = 4
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
KINDS = ("bool", *INTEGERS, *FLOATS)
EXACT = ("float32", *INTEGERS)  # what XLA computes as it is told, rounding by rounding


@dataclass(frozen=True)
class Case:
    """One call, and how far apart the results may be."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    ulps: float = 0
    atol: float = 0


class Draw:
    """Hypothesis' choices as arrays."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))

    def of[T](self, *choices: T) -> T:
        return self._data.draw(st.sampled_from(choices))

    def whole(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def shape(self, low: int = 0, high: int = 3, *, side: int = 5, least: int = 0) -> tuple[int, ...]:
        sides = st.lists(st.integers(least, side), min_size=low, max_size=high)
        return tuple(self._data.draw(sides, label="shape"))

    def array(self, dtype: str, shape: tuple[int, ...], *, scale: float = 10.0, special: bool = True) -> np.ndarray:
        """A quarter of them are those that go wrong."""
        rng = self._rng
        if dtype == "bool":
            return rng.random(shape) < 0.5
        if dtype in FLOATS:
            plain = (rng.normal(size=shape) * scale).astype(jnp.dtype(dtype))
        else:
            info = np.iinfo(dtype)
            plain = rng.integers(info.min, info.max, shape, endpoint=True, dtype=dtype)
        picked = rng.choice(numbers(dtype), size=shape)
        return np.asarray(np.where(rng.random(shape) < (0.25 if special else 0), picked, plain))

    def below(self, bound: int, shape: tuple[int, ...], *, low: int = 0) -> np.ndarray:
        """Places, int32."""
        return self._rng.integers(low, bound, shape).astype(np.int32)

    def order(self, count: int) -> list[int]:
        return self._data.draw(st.permutations(range(count)))


def unary(function: Callable[..., Any], ulps: float = 0, dtypes: tuple[str, ...] = FLOATS, scale: float = 10) -> Any:
    def case(draw: Draw) -> Case:
        x = draw.array(draw.of(*dtypes), draw.shape(), scale=scale)
        # XLA takes the least numbers of float16 for 0.
        return Case(function, (x,), ulps, (1e-5 if x.dtype == np.float16 else 1e-6) if ulps else 0)

    return case


def binary(function: Callable[..., Any], ulps: float = 0, dtypes: tuple[str, ...] = KINDS[1:]) -> Any:
    """Two arrays, or an array and a number that the program knows."""

    def case(draw: Draw) -> Case:
        dtype, shape = draw.of(*dtypes), draw.shape()
        x, y = draw.array(dtype, shape), draw.array(dtype, shape)
        known = draw.array(dtype, ())[()]
        match draw.of("both", "left", "right"):
            case "both":
                return Case(function, (x, y), ulps)
            case "left":
                return Case(lambda y: function(jnp.full_like(y, known), y), (y,), ulps)
            case _:
                return Case(lambda x: function(x, jnp.full_like(x, known)), (x,), ulps)

    return case


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


def product(draw: Draw) -> Case:
    batch, summed = draw.shape(high=2, least=1, side=3), draw.shape(low=1, high=2, least=1, side=4)
    rows, columns = draw.shape(high=2, side=4), draw.shape(high=2, side=4)
    b, s = len(batch), len(summed)
    x_sum, y_sum = tuple(range(b, b + s)), tuple(range(b, b + s))
    dims = ((x_sum, y_sum), (tuple(range(b)), tuple(range(b))))
    dtype = draw.of("float32", "bfloat16", "int8")
    x, y = (draw.array(dtype, (*batch, *summed, *free), scale=1, special=False) for free in (rows, columns))
    wide = jnp.int32 if dtype == "int8" else jnp.float32
    product = lambda x, y: lax.dot_general(x, y, dims, precision="highest", preferred_element_type=wide)  # noqa: E731
    return Case(product, (x, y), atol=0 if dtype == "int8" else 1e-4)


def grouped(draw: Draw) -> Case:
    count, rows = draw.whole(1, 4), draw.whole(1, 9)
    sizes = np.diff(np.sort(np.asarray([0, *draw.below(rows + 1, (count,))])))
    x = draw.array("float32", (rows, 6), special=False, scale=1)
    weight = draw.array("float32", (count, 3, 6), special=False, scale=1)
    total = int(sizes.sum())
    run: Callable[..., Any] = ReferenceBackend().grouped_linear
    return Case(lambda *args: run(*args)[:total], (x, weight, sizes.astype(np.int32)), atol=1e-4)


def keys_of(seeds: Any) -> Any:
    return jax.random.wrap_key_data(seeds, impl="threefry2x32")


def random(function: Callable[..., Any]) -> Any:
    """A function of the words of some keys."""

    def case(draw: Draw) -> Case:
        seeds = draw.array("uint32", (draw.whole(1, 4), 2))
        shape = draw.shape(high=2)
        return Case(lambda seeds: function(seeds, shape), (seeds,))

    return case


def looped(draw: Draw) -> Case:
    length, reverse = draw.whole(0, 5), draw.of(True, False)
    x = draw.array("int32", (length, 3))

    def run(x: Any) -> Any:
        return lax.scan(lambda c, row: (c * 3 + row, c.sum()), jnp.arange(3), x, reverse=reverse)

    return Case(run, (x,))


def repeated(draw: Draw) -> Case:
    step = np.int32(draw.whole(1, 9))
    return Case(
        lambda x, step: lax.while_loop(lambda c: (c[0] < 20) & (c[1] < 5), lambda c: (c[0] + step, c[1] + 1), (x, x)),
        (np.int32(draw.whole(-9, 30)), step),
    )


def branched(draw: Draw) -> Case:
    x = draw.array("float32", draw.shape())
    parts = [lambda x: x + 1, lambda x: x, lambda x: -x]
    return Case(lambda which, x: lax.switch(which, parts, x), (np.int32(draw.whole(-1, 4)), x))


def summed_gradient(draw: Draw) -> Case:
    x = draw.array("float32", draw.shape(), special=False, scale=1)
    return Case(jax.grad(lambda x: (x * x + 3 * x).sum()), (x,))


def bits(seeds: Any, shape: tuple[int, ...]) -> Any:
    return jax.vmap(lambda key: jax.random.bits(key, shape, "uint8"))(keys_of(seeds))


def named(x: Any) -> Any:
    from jax.ad_checkpoint import checkpoint_name

    return checkpoint_name(x, "x") * 2


CASES: Mapping[str, Callable[[Draw], Case]] = {
    **{name: binary(getattr(lax, name)) for name in ("add", "sub", "mul", "div", "rem", "max", "min")},
    **{name: binary(getattr(lax, name), dtypes=KINDS) for name in ("eq", "ne")},
    **{name: binary(getattr(lax, name)) for name in ("lt", "le", "gt", "ge")},
    **{name: binary(getattr(lax, f"bitwise_{name}"), dtypes=("bool", *INTEGERS)) for name in ("and", "or", "xor")},
    **{
        name: binary(getattr(lax, name), dtypes=INTEGERS)
        for name in ("shift_left", "shift_right_logical", "shift_right_arithmetic")
    },
    "add_any": summed_gradient,
    "atan2": binary(lax.atan2, 8, ("float32",)),
    "nextafter": binary(lax.nextafter, dtypes=("float32",)),
    "clamp": clamp,
    "pow": power,
    "integer_pow": integer_power,
    "round": rounding,
    "select_n": select,
    "not": unary(lax.bitwise_not, dtypes=("bool", *INTEGERS)),
    **{name: unary(getattr(lax, name), dtypes=EXACT) for name in ("neg", "sign", "square")},
    "abs": unary(lax.abs, dtypes=("int8", "int16", "int32", *FLOATS)),
    **{name: unary(getattr(lax, name)) for name in ("floor", "ceil", "is_finite")},
    **{
        name: unary(getattr(lax, name), ulps)
        for name, ulps in (
            ("exp", 16), ("expm1", 16), ("log", 8), ("log1p", 8), ("sin", 8), ("cos", 8), ("atan", 8), ("tanh", 8),
            ("sqrt", 1), ("rsqrt", 4), ("cbrt", 8), ("logistic", 16), ("erf", 8), ("erfc", 16),
        )
    },
    **{
        name: unary(getattr(lax, name), 16, scale=0.5)
        for name in ("exp2", "tan", "asin", "acos", "sinh", "cosh", "erf_inv")
    },
    "convert_element_type": convert,
    "bitcast_convert_type": bitcast,
    "reduce_precision": unary(lambda x: lax.reduce_precision(x, 8, 7), dtypes=("float32",)),
    "copy": unary(lambda x: jnp.copy(x) + 1, dtypes=EXACT),
    "optimization_barrier": unary(lambda x: lax.optimization_barrier((x, x))[0] + 1, dtypes=EXACT),
    "name": unary(named, dtypes=EXACT),
    "reshape": reshaped,
    "squeeze": unary(lambda x: lax.squeeze(x[None, ..., None], (0, x.ndim + 1)), dtypes=KINDS),
    "stop_gradient": unary(lambda x: lax.stop_gradient(x) * 2, dtypes=EXACT),
    "device_put": unary(lambda x: jax.device_put(x) * 2, dtypes=EXACT),
    "sharding_constraint": unary(lambda x: lax.with_sharding_constraint(x, HERE) * 2, dtypes=EXACT),
    "empty": unary(lambda x: lax.dynamic_update_slice(lax.empty(x.shape, x.dtype), x, (0,) * x.ndim), dtypes=EXACT),
    "broadcast_in_dim": broadcast,
    "transpose": unary(lambda x: lax.transpose(x, tuple(range(x.ndim))[::-1]), dtypes=KINDS),
    "slice": sliced,
    "rev": unary(lambda x: lax.rev(x, tuple(range(0, x.ndim, 2))), dtypes=KINDS),
    "concatenate": joined(lambda parts, axis: lax.concatenate(parts, axis), same=False),
    "stack": joined(lambda parts, axis: jnp.stack(parts, axis), same=True),
    "unstack": unstacked,
    "split": split,
    "pad": padded,
    "iota": counted,
    "reduce_sum": reduction(lambda x, axes: x.sum(axes, dtype=x.dtype), EXACT, rounds=True),
    "reduce_prod": reduction(lambda x, axes: x.prod(axes, dtype=x.dtype), EXACT, rounds=True),
    "reduce_max": reduction(lambda x, axes: x.max(axes), KINDS),
    "reduce_min": reduction(lambda x, axes: x.min(axes), KINDS),
    "reduce_and": reduction(lambda x, axes: x.all(axes), ("bool",)),
    "reduce_or": reduction(lambda x, axes: x.any(axes), ("bool",)),
    "argmax": extreme_place(lax.argmax),
    "argmin": extreme_place(lax.argmin),
    "cumsum": along(lambda x, axis, reverse: lax.cumsum(x, axis, reverse), EXACT),
    "cumprod": along(lambda x, axis, reverse: lax.cumprod(x, axis, reverse), EXACT),
    "cummax": along(lambda x, axis, reverse: lax.cummax(x, axis, reverse), EXACT),
    "cummin": along(lambda x, axis, reverse: lax.cummin(x, axis, reverse), EXACT),
    "cumlogsumexp": along(lambda x, axis, reverse: lax.cumlogsumexp(x, axis, reverse), ("float32",), 16),
    "reduce": combined,
    "sort": sorting,
    "top_k": largest,
    "lt_to": searched("right"),
    "le_to": searched("left"),
    "gather": read,
    "scatter": written("set"),
    "scatter-add": written("add"),
    "dynamic_slice": window_read,
    "dynamic_update_slice": window_written,
    "dot_general": product,
    "ragged_dot_general": grouped,
    "threefry2x32": random(lambda seeds, _: threefry2x32_p.bind(*seeds.T, *(seeds.T + 1))),
    "random_bits": random(bits),
    "random_split": random(lambda seeds, shape: jax.random.key_data(jax.random.split(keys_of(seeds[0]), shape))),
    "random_fold_in": random(lambda seeds, _: jax.random.key_data(jax.random.fold_in(keys_of(seeds[0]), seeds[0, 1]))),
    "random_seed": random(lambda seeds, _: jax.random.key_data(jax.random.key(seeds[0, 0]))),
    "random_wrap": random(lambda seeds, _: jax.random.key_data(keys_of(seeds))),
    "random_unwrap": random(lambda seeds, _: jax.random.key_data(keys_of(seeds)[::-1])),
    "random_clone": random(lambda seeds, _: jax.random.key_data(jax.random.clone(keys_of(seeds)))),
    "scan": looped,
    "while": repeated,
    "cond": branched,
}  # fmt: skip

ELSEWHERE = {
    "ragged_attention": "test_attention.py",
    **dict.fromkeys(idioms.RULES, "test_idioms.py"),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
def test_it_gives_what_jax_gives(name: str, data: st.DataObject) -> None:
    case = CASES[name](Draw(data))
    # Some calls change nothing, and are none; but there have to be others.
    assume(name in set(primitives(jax.jit(case.function).trace(*case.args).lojax.jaxpr)))
    compare(case.function, *case.args, ulps=case.ulps, atol=case.atol)


def primitives(jaxpr: Any) -> Iterator[str]:
    """The names of a program's operations, those inside others included."""
    for op in flatten_jaxpr(jaxpr).ops:
        yield op.name
        for inner in inner_jaxprs(op):
            yield from primitives(inner)


def test_no_rule_is_left_out() -> None:
    assert {*RULES, *NAMES} - {*CASES} == {*ELSEWHERE}
