"""Arrays, shapes and calls drawn by hypothesis, among the numbers those that go wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from .test_elementwise import FLOATS, INTEGERS, numbers

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
