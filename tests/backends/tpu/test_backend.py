"""The form that the TPU backend gives to weights, and what it declines when a model is built."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import CacheGroup
from distaff.backends.errors import UnsupportedError
from distaff.backends.tpu.backend import TpuBackend
from distaff.models.config import ModelConfig
from distaff.scripts.step_case import shipped_config

LAYERS, WIDTH, HEADS, HEAD_DIM = 3, 6, 2, 4


def test_output_projections_become_matrices_and_nothing_else_changes() -> None:
    rng = np.random.default_rng(0)
    o = rng.standard_normal((LAYERS, WIDTH, HEADS, HEAD_DIM)).astype(np.float32)
    q = rng.standard_normal((LAYERS, HEADS, HEAD_DIM, WIDTH)).astype(np.float32)
    bias = rng.standard_normal((LAYERS, WIDTH)).astype(np.float32)
    given = {"attention": {"o": {"weight": o, "bias": bias}, "q": {"weight": q}}, "o": {"scale": bias}}
    backend = TpuBackend(generation="v6e", interpret=True)
    made = backend.prepare_params(given)

    assert made["attention"]["o"]["weight"].shape == (LAYERS, WIDTH, HEADS * HEAD_DIM)
    assert made["attention"]["o"]["bias"] is bias and made["attention"]["q"]["weight"] is q
    assert made["o"]["scale"] is bias
    x = rng.standard_normal((5, HEADS, HEAD_DIM)).astype(np.float32)
    for layer in range(LAYERS):
        out = backend.linear(jnp.asarray(x), jnp.asarray(made["attention"]["o"]["weight"][layer]), "TNH,DNH->TD")
        np.testing.assert_allclose(out, np.einsum("tnh,dnh->td", x, o[layer]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, 64, 150])
def test_rows_of_a_table_are_those_that_are_named(count: int) -> None:
    """More than 64 are taken a few at a time, the rest behind them."""
    table = np.arange(40 * 8, dtype=np.float32).reshape(40, 8)
    ids = np.random.default_rng(count).integers(0, 40, count).astype(np.int32)
    got = TpuBackend(generation="v6e", interpret=True).embed(jnp.asarray(table), jnp.asarray(ids))
    np.testing.assert_array_equal(got, table[ids])


def test_options_are_for_the_compiler_of_tpus_alone() -> None:
    assert TpuBackend(generation="tpu7x").compiler_options["xla_tpu_scoped_vmem_limit_kib"] == 48 * 1024
    assert not TpuBackend(generation="tpu7x", interpret=True).compiler_options


def check(generation: str, *groups: CacheGroup) -> None:
    TpuBackend(generation=generation).check(groups, dtype=jnp.bfloat16, kv_dtype=jnp.bfloat16, page_size=128)


def test_query_heads_that_do_not_fit_are_refused_when_the_model_is_built() -> None:
    """v4 has too little vector memory for 64 query heads, though not for their 8 kv heads."""
    config: ModelConfig = shipped_config("llama-3.1-70b")
    (group,) = config.cache_groups
    assert (group.num_kv_heads, group.queries_per_kv_head) == (8, 8)
    check("v6e", group)
    check("v4", CacheGroup(1, 8, 128))
    with pytest.raises(UnsupportedError, match="64 query heads"):
        check("v4", group)
