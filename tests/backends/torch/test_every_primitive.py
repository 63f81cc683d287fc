"""Every rule against JAX: shapes, types and numbers drawn by hypothesis, among them those that wrap around, NaN,
infinities and signed zeros; nothing that has a rule is left out."""

from collections.abc import Callable, Iterator, Mapping
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
from distaff.backends.torch import collectives, idioms
from distaff.backends.torch.control_flow import NAMES, inner_jaxprs
from distaff.backends.torch.flat_jaxpr import flatten_jaxpr
from distaff.backends.torch.primitives import RULES

from .array_cases import (
    along,
    bitcast,
    broadcast,
    clamp,
    combined,
    convert,
    counted,
    extreme_place,
    integer_power,
    joined,
    largest,
    padded,
    power,
    read,
    reduction,
    reshaped,
    rounding,
    searched,
    select,
    sliced,
    sorting,
    split,
    unstacked,
    window_read,
    window_written,
    written,
)
from .drawn import EXACT, KINDS, Case, Draw, binary, unary
from .running import compare
from .test_elementwise import FLOATS, INTEGERS

EXAMPLES = 4
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


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
    **dict.fromkeys(collectives.RULES, "test_collectives.py"),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=EXAMPLES, derandomize=True, database=None)
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
