"""Compiling for a TPU that is not there."""

import jax
import jax.numpy as jnp
import pytest

from distaff.backends.aot import compile_ahead


def test_a_matmul_compiles_for_v6e() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    program = compile_ahead(lambda a, b: a @ b, (x, x), "v6e:2x2")
    assert "convolution" in (program.as_text() or "")  # what the TPU compiler makes of a matmul
    assert program.memory_analysis().argument_size_in_bytes == 2 * 256 * 256 * 2
