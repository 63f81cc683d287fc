"""What the machine can do at most, measured: the denominators of MFU and MBU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..backends.base import Backend
from ..sharding.backend import ShardedBackend

_TARGET_SECONDS = 0.02  # long enough that starting a program does not count
_START_SIZE, _MAX_SIZE = 1024, 8192
_REPEATS = 5
_MOST_READS = 64


@dataclass(frozen=True)
class MachineLimits:
    """The best of several runs: bytes read a second, and matmul FLOP/s, each on the whole device."""

    bytes_per_s: float
    flops_per_s: float

    def bound(self, flops: float, num_bytes: float) -> str:
        """Which of the two takes longer: "compute" or "bandwidth"."""
        return "compute" if flops / self.flops_per_s > num_bytes / self.bytes_per_s else "bandwidth"


def measure_limits(backend: Backend, dtype: DTypeLike, *, num_bytes: int = 2**29) -> MachineLimits:
    """Times reading `num_bytes` of memory, and square matmuls in `dtype` and fp32 by XLA and by the backend.

    The faster arithmetic counts: a backend is free to compute bf16 weights in fp32. Takes a second or two. Of several
    devices one is measured, and counts as often as there are; those that share a host's memory are one machine.
    """
    if isinstance(backend, ShardedBackend):
        one = measure_limits(backend.inner, dtype, num_bytes=num_bytes)
        times = 1 if backend.inner.memory().shared else backend.layout.num_devices
        return MachineLimits(one.bytes_per_s * times, one.flops_per_s * times)
    dtypes = {jnp.dtype(dtype), jnp.dtype(jnp.float32)}
    return MachineLimits(
        bytes_per_s=_read_rate(num_bytes),
        flops_per_s=max(rate for each in dtypes for rate in _matmul_rates(backend, each)),
    )


def _read_rate(num_bytes: int) -> float:
    # A matrix that is far bigger than its vectors, and a reduction: XLA's best way to only read differs by chip.
    matrix = jnp.ones((num_bytes // 4096, 1024), jnp.float32)
    times = 1
    while True:
        seconds = min(_best(partial(read, matrix, times=times)) for read in (_multiplied, _largest))
        if seconds >= _TARGET_SECONDS or times >= _MOST_READS:
            return times * matrix.nbytes / seconds
        times *= 8


@partial(jax.jit, static_argnames="times")
def _multiplied(matrix: Float[Array, "A B"], *, times: int) -> Float[Array, "B"]:
    """Reads it so many times, in an order that nothing can change."""
    width = matrix.shape[1]
    return jax.lax.fori_loop(0, times, lambda _, x: (matrix @ x)[:width] / width, jnp.ones(width))


@partial(jax.jit, static_argnames="times")
def _largest(matrix: Float[Array, "A B"], *, times: int) -> Float[Array, "A"]:
    start = jnp.zeros(matrix.shape[0])
    return jax.lax.fori_loop(0, times, lambda _, x: (matrix + x[:, None]).max(axis=1), start)


def _matmul_rates(backend: Backend, dtype: DTypeLike) -> tuple[float, float]:
    xla = jax.jit(partial(jnp.einsum, "TD,FD->TF", preferred_element_type=jnp.float32))
    size = _START_SIZE
    while True:
        # Chips with a power limit multiply equal numbers faster than those of real texts.
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        seconds = _best(lambda x=x: xla(x, x))
        if seconds >= _TARGET_SECONDS or size >= _MAX_SIZE:
            break
        size *= 2
    weight = backend.prepare_params({"weight": x})["weight"]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (x, weight))
    ours, given = backend.compile(lambda x, weight: backend.linear(x, weight, "TD,FD->TF"), shapes), backend.put(x)
    flops = 2.0 * size**3
    return flops / seconds, flops / _best(lambda: ours(given, weight))


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest run; the first one compiles and does not count."""
    run().block_until_ready()
    times: list[float] = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
