"""Rotary position embedding (arXiv 2104.09864) and every way in use to stretch it over longer contexts.

Some scalings depend on the length of the text in their original code (`dynamic`, `longrope`). Here the length is
fixed when the model is loaded: the longest context that it allows. Otherwise a token would depend on how its prompt
was cut into chunks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeScaling:
    """One scaling; a field that a kind does not read stays at its default.

    `factor` stretches positions; `original_positions` is the context before stretching; `max_positions` the context
    that frequencies are fixed for. `low_freq_factor` and `high_freq_factor` belong to llama3; `beta_fast`,
    `beta_slow` and `truncate` to yarn; `divisors` (one for each frequency) to longrope. `attention_factor`
    multiplies cosines and sines.
    """

    kind: RopeKind
    factor: float = 1.0
    original_positions: int = 0
    max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    attention_factor: float = 1.0


@dataclass(frozen=True)
class RopeConfig:
    """Rotates the first `dim` of each head's entries, in halves, with base `theta`."""

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None


def frequencies(rope: RopeConfig) -> np.ndarray:
    """Radians per position, [dim / 2].

    Rounded to float32 where the code that models are trained with rounds: the last bit of a frequency adds up over
    positions.
    """
    scaling = rope.scaling
    plain = _plain(rope.dim, rope.theta)
    if scaling is None:
        return plain
    match scaling.kind:
        case "linear":
            return plain / scaling.factor
        case "dynamic":
            return _plain(rope.dim, _dynamic_theta(rope, scaling))
        case "llama3":
            return _llama3(plain, scaling)
        case "yarn":
            return _yarn(plain, rope, scaling)
        case "longrope":
            return plain / np.asarray(scaling.divisors, np.float64)


def _plain(dim: int, theta: float) -> np.ndarray:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return 1 / (theta ** exponents.astype(np.float64)).astype(np.float32)


def _dynamic_theta(rope: RopeConfig, scaling: RopeScaling) -> float:
    """The NTK-aware base of "dynamic" scaling, taken at the longest context."""
    stretch = scaling.factor * scaling.max_positions / scaling.original_positions - (scaling.factor - 1)
    return rope.theta * max(stretch, 1.0) ** (rope.dim / (rope.dim - 2))


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Long wavelengths are stretched, short ones kept, those between interpolated (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    turns = scaling.original_positions / wavelength
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(plain: np.ndarray, rope: RopeConfig, scaling: RopeScaling) -> np.ndarray:
    """A ramp over dimensions between stretched and kept frequencies (arXiv 2309.00071)."""

    def dimension(turns: float) -> float:
        return rope.dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = np.clip((np.arange(rope.dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def rotation(rope: RopeConfig, positions: Int[Array, "T"]) -> tuple[Float[Array, "T R"], Float[Array, "T R"]]:
    """Cosines and sines of each position's angles, fp32, R = dim / 2."""
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies(rope), jnp.float32)
    factor = rope.scaling.attention_factor if rope.scaling is not None else 1.0
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor
