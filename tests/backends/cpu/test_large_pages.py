"""Memory in large pages: what the system says of it, and that the arrays are what they were."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from distaff.backends.base import CacheGroup
from distaff.backends.cpu.backend import CpuBackend
from distaff.backends.cpu.large_pages import gathered, zeros

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
asks = pytest.mark.skipif(
    not SETTING.is_file() or "[never]" in SETTING.read_text(), reason="this system gives no large pages"
)


def asked_for(x: Array) -> bool:
    """Whether most of an array's memory is marked for large pages (`hg` in proc_pid_smaps(5))."""
    start, found = x.block_until_ready().unsafe_buffer_pointer(), 0
    first = last = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(number, 16) for number in match.groups())
        elif line.startswith("VmFlags:") and " hg" in line:
            found += max(0, min(last, start + x.nbytes) - max(first, start))
    return found > x.nbytes - 2**22


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 1000, 3, 512), (1, 8_000_001)])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_zeros_are_zeros(shape: tuple[int, ...], dtype: str) -> None:
    for made in (zeros(shape, dtype), jax.jit(lambda: zeros(shape, dtype))()):
        assert made.shape == shape and made.dtype == dtype
        assert not np.asarray(made).any()


def test_two_results_of_a_program_do_not_share_memory() -> None:
    one, two = jax.jit(lambda: (zeros((2**23,), "int8"), zeros((2**23,), "int8")))()
    written = jax.jit(lambda x: x.at[5].set(1), donate_argnums=0)(one)
    assert int(written.sum()) == 1 and not np.asarray(two).any()


@asks
def test_a_cache_asks_for_large_pages() -> None:
    group = CacheGroup(num_layers=30, num_kv_heads=3, head_dim=64)
    assert asked_for(CpuBackend().allocate_cache(group, num_pages=256, page_size=16, dtype="int8"))
    assert not asked_for(jnp.zeros(2**25, jnp.int8) + 1)  # and what does not ask gets none


@asks
def test_weights_are_gathered_and_keep_their_numbers() -> None:
    backend = CpuBackend()
    weights = {"segments": {"up": {"weight": jnp.asarray(np.random.default_rng(0).standard_normal((2, 2048, 2048)))}}}
    x = jnp.ones((3, 2048), jnp.float32)
    packed = backend.prepare_params(weights)["segments"]["up"]["weight"]
    assert asked_for(packed.panels)
    product = backend.linear(x, packed.layer(jnp.int32(1)), "TD,FD->TF")
    np.testing.assert_allclose(product, x @ weights["segments"]["up"]["weight"][1].T, atol=1e-3)


def test_what_is_small_or_traced_is_left_alone() -> None:
    tree = {"a": jnp.ones(3), "b": None}
    assert gathered(tree) is tree
    np.testing.assert_array_equal(jax.jit(lambda x: gathered(x) + 1)(jnp.ones(2**21)), 2)
