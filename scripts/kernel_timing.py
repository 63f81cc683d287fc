"""Times kernels on the TPU that is attached."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..backends.compile_job import Case, resolve
from .kernel_rows import KernelRow

_KINDS: Mapping[str, str] = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""What JAX calls a device, and what we call it."""

_CALLS, _ROUNDS = 20, 5


def measured_us(row: KernelRow, **changes: Any) -> float | None:
    """Microseconds of one call, if the attached device is of the row's generation; `changes` are more arguments."""
    if _KINDS.get(jax.devices()[0].device_kind) != row.generation:
        return None
    return time_case(resolve(row.builder)(**row.arguments, **changes)) * 1e6


def time_case(case: Case, *, calls: int = _CALLS, rounds: int = _ROUNDS) -> float:
    """Seconds of one call: the median of rounds of calls in a row. Donated arguments come back as the last results."""
    args = [_filled(argument) for argument in case.abstract_args]
    lowered = jax.jit(case.function, donate_argnums=tuple(case.donate)).lower(*args)
    program = lowered.compile(dict(case.compiler_options or {}))

    def run(count: int) -> float:
        began, results = time.perf_counter(), None
        for _ in range(count):
            results = program(*args)
            _take_back(args, case.donate, results)
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / count

    run(2)
    return statistics.median(run(calls) for _ in range(rounds))


def _take_back(args: list[Any], donate: Sequence[int], results: Any) -> None:
    if donate:
        for number, value in zip(donate, results[-len(donate) :], strict=True):
            args[number] = value


def _filled(argument: Any) -> Any:
    """Arrays of the abstract leaves: random where they are numbers. Lengths and tables are arrays already."""
    key = jax.random.key(0)

    def fill(leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return jnp.array(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.random.normal(key, leaf.shape, jnp.bfloat16).astype(leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(fill, argument)
