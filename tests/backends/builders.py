"""Builders of programs to compile in another process: good ones, and those that misbehave as compilers do."""

import os
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from distaff.backends.aot import Case


def matmul(size: int) -> Case:
    """A square bfloat16 matmul."""
    x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16)
    return Case(lambda a, b: a @ b, (x, x))


def kernel(rows: int) -> Case:
    """A kernel with f32[rows, 128] in VMEM, of which it doubles the first 8 rows."""

    def body(x_ref: jax.Ref, out_ref: jax.Ref) -> None:
        out_ref[:8] = x_ref[:8] * 2

    x = jax.ShapeDtypeStruct((rows, 128), jnp.float32)
    return Case(pl.pallas_call(body, out_shape=x, name="double"), (x,))


def rejected_kernel() -> Case:
    """A kernel that asks for what Mosaic cannot do."""

    def body(x_ref: jax.Ref, out_ref: jax.Ref) -> None:
        out_ref[...] = jnp.sort(x_ref[...].reshape(-1)).reshape(out_ref.shape)

    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    return Case(pl.pallas_call(body, out_shape=x), (x,))


def sleeping(seconds: float) -> Case:
    """Takes its time."""
    time.sleep(seconds)
    return matmul(8)


def aborting() -> Case:
    """Ends its process as a failed check in a compiler does."""
    sys.stderr.write("F0000 check failed: unsupported layout\n")
    sys.stderr.flush()
    os.abort()


def failing() -> Case:
    """Has a bug of its own."""
    raise ZeroDivisionError("a bug in the builder")
