"""An orthogonal matrix of every size that costs little to multiply with: signs, Hadamard matrices and Hartley's."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

_SEED = 0
_LARGEST = 64
"""Rows of a Hadamard matrix; more are several in a row, whose Kronecker product is one again."""


def turned(x: Float[Array, "*rows D"]) -> Float32[Array, "*rows D"]:
    """x Q in fp32. The entries of Q are about as large as each other, so that one large number becomes D small ones
    (QuIP#, Tseng et al., arXiv 2402.04396, section 3)."""
    signs, factors = _parts(x.shape[-1])
    return _along_each(x.astype(jnp.float32) * signs, factors, partial(jnp.matmul, precision="highest"))


def turned_back(x: Float[np.ndarray, "*rows D"]) -> Float32[np.ndarray, "*rows D"]:
    """x Q^T in fp32, by numpy: a server calls it beside what runs on its device."""
    signs, factors = _parts(x.shape[-1])
    return _along_each(x.astype(np.float32), [factor.T for factor in factors], np.matmul) * signs


def _along_each[T: (Array, np.ndarray)](x: T, factors: Sequence[np.ndarray], matmul: Callable[[np.ndarray, T], T]) -> T:
    """Rows times the Kronecker product of some matrices."""
    *rows, right = x.shape
    left = 1
    for factor in factors:
        right //= len(factor)
        x = matmul(factor.T, x.reshape(*rows, left, len(factor), right)).reshape(*rows, -1)
        left *= len(factor)
    return x


@lru_cache
def _parts(size: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Signs of each entry, and the matrices whose Kronecker product follows; the same ones every time."""
    signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), size).astype(np.float32)
    factors: list[np.ndarray] = []
    even, odd = size & -size, size // (size & -size)
    while even > 1:
        factors.append(_hadamard(min(even, _LARGEST)))
        even //= len(factors[-1])
    if odd > 1 or not factors:
        factors.append(_hartley(odd))
    return signs, tuple(factors)


def _hadamard(size: int) -> Float32[np.ndarray, "N N"]:
    """Sylvester's, of a power of two, with rows of length 1."""
    made = np.ones((1, 1), np.float32)
    while len(made) < size:
        made = np.block([[made, made], [made, -made]])
    return made / np.float32(np.sqrt(size))


def _hartley(size: int) -> Float32[np.ndarray, "N N"]:
    """The discrete Hartley transform: orthogonal, and no entry is more than the square root of two times its share."""
    angles = 2 * np.pi * np.outer(np.arange(size), np.arange(size)) / size
    return ((np.cos(angles) + np.sin(angles)) / np.sqrt(size)).astype(np.float32)
