"""Rounding to 8 bits in kernels, interpreted, against NumPy; and what models make of it, against the reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distaff.backends.base import Backend
from distaff.backends.errors import UnsupportedError
from distaff.backends.quantized import Quantized, quantized_linear
from distaff.backends.reference import ReferenceBackend
from distaff.backends.rounded_tokens import RoundedTokens
from distaff.backends.tpu.backend import TpuBackend
from distaff.backends.tpu.rounding import Kind, round_gate, round_norm, round_rows, rounding_work, tile_rows
from distaff.models.config import MlpConfig, NormConfig
from distaff.models.layers import Machine, Norm, ParamFactory
from distaff.models.mlp import Mlp
from distaff.models.placement import OneDevice

INTERPRETED = TpuBackend(generation="v6e", interpret=True)
NORM: dict[str, float] = {"offset": 0.0, "epsilon": 1e-5}
BACKENDS: dict[str, Backend] = {"reference": ReferenceBackend(), "tpu": INTERPRETED}


@pytest.mark.parametrize("kind", ["rows", "norm", "gate"])
@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [((80, 256), "int8", 0.501), ((5, 640), "int8", 0.501), ((32, 128), "float8_e4m3fn", 17.0)],
)
def test_numbers_and_scales_are_those_of_what_is_rounded(
    kind: Kind, shape: tuple[int, int], dtype: str, error: float
) -> None:
    """Rounded to half a step; of 8-bit floats near 448 steps are 32. A row of zeros stays one."""
    rng = np.random.default_rng(0)
    x, up = rng.normal(size=(2, *shape)).astype(np.float32)
    w = rng.normal(size=shape[1]).astype(np.float32)
    x[3] = 0
    how: dict[str, Any] = {"generation": "v6e", "dtype": dtype, "interpret": True}
    exact = x.astype(np.float64)
    match kind:
        case "rows":
            got, want = round_rows(jnp.asarray(x), **how), exact
        case "norm":
            got = round_norm(jnp.asarray(x), jnp.asarray(w), epsilon=1e-5, **how)
            want = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5) * w
        case "gate":
            got, want = round_gate(jnp.asarray(x), jnp.asarray(up), **how), exact / (1 + np.exp(-exact)) * up
    numbers, scale = np.asarray(got.numbers.astype(jnp.float32)), np.asarray(got.scale)[:, None]
    assert got.numbers.dtype == jnp.dtype(dtype) and numbers.shape == shape and not numbers[3].any()
    others = np.arange(len(x)) != 3
    assert (np.abs(numbers).max(axis=1)[others] == {"int8": 127, "float8_e4m3fn": 448}[dtype]).all()
    assert (np.abs(numbers * scale - want) <= error * scale)[others].all()


def test_two_tiles_fit_into_vmem_whatever_the_width() -> None:
    assert tile_rows("norm", 8192, 4096, "bfloat16", "v6e") == (256, 64)
    assert tile_rows("norm", 5, 4096, "bfloat16", "v6e") == (16, 16)
    assert tile_rows("norm", 8192, 16384, "bfloat16", "v4") == (64, 64)
    work = rounding_work("norm", 512, 4096, "v6e")
    assert work.hbm_bytes == 512 * (4096 * 3 + 4) + 4096 * 4 and list(work.trips) == [1]
    assert rounding_work("gate", 512, 4096, "v6e").hbm_bytes == 512 * (4096 * 5 + 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=100), "width 100, supported are multiples of 128"),
        (dict(dtype="int4"), "rounding to int4, supported are int8, float8_e4m3fn"),
        (dict(width=2**20, generation="v4"), "width 1048576, supported is what fits 14 MiB"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    asked = dict(width=128, dtype="int8", generation="v6e") | change
    width = asked.pop("width")
    with pytest.raises(UnsupportedError, match=message):
        round_rows(jnp.zeros((1, width)), **asked)  # pyright: ignore


def weight(shape: tuple[int, int], seed: int, activations: bool = True, kind: str = "int8") -> Quantized:
    rng = np.random.default_rng(seed)
    values = jnp.asarray(rng.integers(-127, 128, shape), jnp.float32).astype(kind)
    scale = jnp.asarray(rng.uniform(1e-4, 1e-3, (shape[0], 1)), jnp.float32)
    return Quantized(values, scale, kind, jnp.dtype(jnp.float32), activations)


def test_tokens_are_rounded_only_where_all_products_round_alike() -> None:
    x, scale = jnp.ones((4, 128)), jnp.ones(128)
    alike, other = weight((256, 128), 0), weight((128, 128), 1)
    assert isinstance(INTERPRETED.rounded_norm(x, scale, [alike, other], **NORM), RoundedTokens)
    for odd in (weight((8, 128), 2, False), weight((8, 128), 2, True, "float8_e4m3fn"), jnp.ones((8, 128))):
        assert INTERPRETED.rounded_norm(x, scale, [alike, odd], **NORM) is None
    assert INTERPRETED.rounded_norm(x[:, :100], scale[:100], [weight((8, 100), 3)], **NORM) is None
    assert INTERPRETED.rounded_gate(x, x, weight((8, 128), 2, False)) is None
    assert ReferenceBackend().rounded_norm(x, scale, [alike], **NORM) is None


def test_a_feed_forward_layer_is_the_references() -> None:
    """Norm, projections, gate and what is behind them: the reference rounds the same numbers, in more operations."""
    sizes = {"D": 256, "F": 384}
    new = ParamFactory(nnx.Rngs(0), jnp.float32, sizes)
    mlp, norm = Mlp(MlpConfig(384), new), Norm(NormConfig("rms", 1e-5), "D", new)
    assert mlp.gate is not None
    for seed, (projection, shape) in enumerate(((mlp.gate, (384, 256)), (mlp.up, (384, 256)), (mlp.down, (256, 384)))):
        projection.weight.set_value(weight(shape, seed))  # pyright: ignore[reportArgumentType]
    norm.scale.set_value(jnp.asarray(np.random.default_rng(5).normal(size=256), jnp.float32))
    x = jnp.asarray(np.random.default_rng(4).normal(size=(24, 256)), jnp.float32)

    def run(name: str) -> np.ndarray:
        machine = Machine(BACKENDS[name], OneDevice())
        given = norm.for_products(x, mlp.inputs, machine)
        assert isinstance(given, RoundedTokens) == (name == "tpu")
        return np.asarray(mlp(given, machine))

    got, want = run("tpu"), run("reference")
    # A number on the border between two steps may fall to either side.
    np.testing.assert_allclose(got, want, atol=0.01 * np.abs(want).max())
    assert np.abs(got - want).mean() < 1e-3 * np.abs(want).mean()


def test_small_numbers_of_layers_come_back_as_they_were() -> None:
    """Side by side in the loop, each layer's its own, whatever their types; matrices stay what they are."""
    rng = np.random.default_rng(0)
    stacked = {
        "scale": jnp.asarray(rng.normal(size=(3, 5, 1)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=(3, 7)), jnp.bfloat16),
        "other": jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32),
        "numbers": jnp.asarray(rng.integers(-9, 9, (3, 4)), jnp.int8),
        "matrix": jnp.asarray(rng.normal(size=(3, 512, 256)), jnp.float32),
    }
    empty = jax.tree.map(jnp.zeros_like, stacked)

    def body(seen: Any, layer: Any, number: Any) -> Any:
        return jax.tree.map(lambda all_of, part: all_of.at[number].set(part), seen, layer)

    loop = jax.jit(lambda stacked: INTERPRETED.layer_loop(body, empty, stacked, 3))
    jax.tree.map(np.testing.assert_array_equal, loop(stacked), stacked)
    text = loop.lower(stacked).as_text()
    assert "3x13xf32" in text and "3x512x256xf32" in text


def test_a_product_of_rounded_tokens_is_that_of_what_they_stand_for() -> None:
    w = weight((6, 128), 0)
    tokens = round_rows(jnp.asarray(np.random.default_rng(1).normal(size=(16, 128)), jnp.bfloat16), generation="v6e",
                        interpret=True)  # fmt: skip
    got = quantized_linear(tokens, w, 1, tokens.dtype)
    want = (np.asarray(tokens.numbers, np.float64) * np.asarray(tokens.scale)[:, None]) @ (
        np.asarray(w.values, np.float64) * np.asarray(w.scale)
    ).T
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)
