"""From type to type, against JAX."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .running import compare
from .test_elementwise import FLOATS, INTEGERS, numbers


@pytest.mark.parametrize("given", ["bool", *INTEGERS, *FLOATS])
@pytest.mark.parametrize("wanted", ["bool", *INTEGERS, *FLOATS])
def test_every_pair_of_types(given: str, wanted: str) -> None:
    x = numbers(given)
    if given in FLOATS and wanted in INTEGERS:
        # What is out of range is the processor's choice in XLA; what is in range is not.
        info = np.iinfo(wanted)
        with np.errstate(invalid="ignore"):
            x = x[(x.astype(np.float64) >= info.min) & (x.astype(np.float64) <= info.max)]
    compare(lambda x: lax.convert_element_type(x, jnp.dtype(wanted)), x)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("float32", "uint32"), ("uint32", "float32"), ("float32", "int32"), ("bfloat16", "uint16"), ("uint32", "uint8"),
     ("int16", "uint16")],
)  # fmt: skip
def test_the_same_bits(given: str, wanted: str) -> None:
    compare(lambda x: lax.bitcast_convert_type(x, jnp.dtype(wanted)), numbers(given))


def test_parts_become_a_whole() -> None:
    parts = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    compare(lambda x: lax.bitcast_convert_type(x, jnp.uint32), parts)


def test_precision_is_taken_away() -> None:
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    compare(lambda x: lax.reduce_precision(x, 8, 7), x)
