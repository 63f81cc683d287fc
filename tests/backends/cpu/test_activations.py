"""The CPU's passes over activations, rounding to bytes, gates of feed-forward layers and norms, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.cpu.gate import silu_gate
from distaff.backends.cpu.norm import rms_norm
from distaff.backends.cpu.tile import multiplies_bytes
from distaff.backends.cpu.tokens import byte_tokens
from distaff.backends.quantized import round_tokens

SHAPES = ((1, 1), (5, 7), (3, 16), (2, 66), (40, 515), (64, 1536))
"""Parts of a vector, of a word and of a chunk."""


@pytest.mark.skipif(not multiplies_bytes(), reason="no x86: bytes are widened to fp32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_have_the_bits_of_the_formula(shape: tuple[int, int], dtype: str) -> None:
    """128 added; a token of zeros has them, and those behind the first `count` are not looked at."""
    x = np.random.default_rng(0).standard_normal(shape) * 10.0 ** (np.arange(shape[0])[:, None] % 9 - 4)
    given = jnp.asarray(x, dtype).at[0].set(0)
    rounded = jax.jit(round_tokens, static_argnums=1)(given, "int8")
    want, scales = rounded.numbers, rounded.scale
    count = max(1, shape[0] - 1)
    got, each = jax.jit(byte_tokens)(given.at[count:].set(jnp.nan), jnp.int32(count))
    assert got.shape == (shape[0], -(-shape[1] // 4) * 4)
    np.testing.assert_array_equal(np.asarray(got[:count, : shape[1]], np.int32) - 128, want[:count])
    np.testing.assert_array_equal(each[:count], scales[:count])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gate_is_rounded_once(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    gate, up = (jnp.asarray(rng.standard_normal(shape) * size, jnp.bfloat16) for size in (8.0, 1.0))
    gate = gate.at[0, 0].set(-300.0).at[-1, -1].set(300.0)
    x, y = (np.asarray(each, np.float64) for each in (gate, up))
    want = x / (1 + np.exp(-x)) * y
    got = np.asarray(jax.jit(silu_gate)(gate, up), np.float64)
    # Half a unit of bfloat16, and what fp32 adds.
    np.testing.assert_allclose(got, want, rtol=2.0**-8 * 1.001, atol=1e-30)


@pytest.mark.parametrize(("dtype", "offset"), [("float32", 0.0), ("bfloat16", 0.0), ("bfloat16", 1.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_is_rounded_once_and_of_its_row_alone(shape: tuple[int, int], dtype: str, offset: float) -> None:
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal(shape) * 10.0 ** (np.arange(shape[0])[:, None] % 5 - 2), dtype)
    scale = jnp.asarray(rng.standard_normal(shape[1]), dtype)
    got = rms_norm(x, scale, offset=offset, epsilon=1e-5)
    wide = np.asarray(x, np.float64)
    want = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * (np.asarray(scale, np.float64) + offset)
    # Half a unit of the type, and what fp32 adds.
    rtol = 3e-6 if dtype == "float32" else 2.0**-8 * 1.001
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=1e-30)
    last = rms_norm(x[-1:], scale, offset=offset, epsilon=1e-5)
    np.testing.assert_array_equal(last, got[-1:])
