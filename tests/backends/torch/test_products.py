"""Matrix products, against JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from distaff.backends.reference import ReferenceBackend
from distaff.backends.torch import products

from .running import compare, lowered


def random(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("TD,FD->TF", (5, 8), (6, 8)),
        ("BTD,BDF->BTF", (2, 5, 8), (2, 8, 6)),
        ("QKGH,SKH->KGQS", (3, 2, 4, 8), (7, 2, 8)),
        ("T,T->", (5,), (5,)),
        ("TD,D->T", (5, 8), (8,)),
        ("ab,cd->abcd", (2, 3), (4, 5)),
        ("TNH,DNH->TD", (5, 2, 4), (6, 2, 4)),
    ],
)
def test_any_axes(equation: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    compare(lambda x, y: jnp.einsum(equation, x, y), random(*x), random(*y), atol=1e-5)


def test_whole_numbers_are_summed_in_the_wide_type() -> None:
    x, y = (np.random.default_rng(0).integers(-128, 128, (4, 64)).astype(np.int8) for _ in range(2))
    compare(lambda x, y: lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32), x, y)


def test_bfloat16_is_summed_in_fp32() -> None:
    x, y = random(3, 512, dtype="bfloat16"), random(4, 512, dtype="bfloat16")
    linear = ReferenceBackend().linear
    compare(lambda x, y: linear(x, y, "TD,FD->TF", out_dtype=jnp.float32), x, y, atol=1e-3)
    compare(lambda x, y: linear(x, y, "TD,FD->TF"), x, y, ulps=2)


def test_a_sum_that_is_rounded_at_once_is_made_in_the_narrow_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "capability", lambda: "AVX512")
    x, y = random(3, 8, dtype="bfloat16"), random(4, 2, 8, dtype="bfloat16")
    code = lowered(lambda x, y: ReferenceBackend().linear(x, y, "TD,NHD->TNH"), x, y).module.code
    assert "float32" not in code and "linear" in code
    wide = lowered(lambda x, y: ReferenceBackend().linear(x, y, "TD,NHD->TNH", out_dtype=jnp.float32), x, y)
    assert "float32" in wide.module.code


@pytest.mark.parametrize("sizes", [(2, 0, 3), (0, 0, 0), (5, 0, 0), (1, 1, 1)])
def test_groups_of_rows(sizes: tuple[int, ...]) -> None:
    grouped: Callable[..., Any] = ReferenceBackend().grouped_linear
    total = sum(sizes)
    compare(lambda *args: grouped(*args)[:total], random(5, 8), random(3, 6, 8), np.asarray(sizes, np.int32), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(3, 576, 40), (7, 600, 2000), (3, 0, 4), (64, 33, 1)])
def test_a_processor_without_products_of_16_bits_makes_those_of_32(
    rows: int, inner: int, columns: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "capability", lambda: "AVX2")
    x, y = random(rows, inner, dtype=dtype), random(columns, inner, dtype=dtype)

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return ReferenceBackend().linear(x, y, "TD,FD->TF")

    assert "widened" in lowered(product, x, y).module.code
    assert "widened" not in lowered(product, x[:2], y).module.code  # for two it is no gain
    compare(product, x, y, ulps=2, atol=1e-3)
