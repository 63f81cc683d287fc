"""Dense flash attention against plain jax.numpy, interpreted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import AttentionSpec
from distaff.backends.errors import UnsupportedError
from distaff.backends.tpu.flash import check_flash, flash_attention
from distaff.backends.tpu.prefill_plan import PrefillBlocks

CASES: list[dict[str, Any]] = [
    dict(shape=(1, 300, 300, 4, 2, 128), whole=True),
    dict(shape=(2, 130, 300, 6, 3, 64), matrix_sums=False),
    dict(shape=(1, 400, 290, 4, 2, 128), causal=False, window=100),
    dict(shape=(2, 300, 300, 4, 2, 64), segments=True, soft_cap=3.0),
    dict(shape=(1, 260, 260, 3, 3, 80), sinks=True, window=50, whole=True),
]


@pytest.mark.parametrize(
    "case", [*CASES[3:], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[:3])], ids=str
)
def test_like_plain_attention(case: dict[str, Any]) -> None:
    batch, queries, keys, num_heads, num_kv_heads, head_dim = case["shape"]
    causal, window, cap = case.get("causal", True), case.get("window"), case.get("soft_cap")
    rng = np.random.default_rng(0)
    sizes = ((queries, num_heads), (keys, num_kv_heads), (keys, num_kv_heads))
    q, k, v = (jnp.asarray(rng.normal(size=(batch, n, heads, head_dim)), jnp.float32) for n, heads in sizes)
    sinks = jnp.asarray(rng.normal(size=num_heads), jnp.float32) if "sinks" in case else None
    numbers = jnp.asarray(np.sort(rng.integers(0, 3, (batch, keys))), jnp.int32)
    segments = (numbers, numbers) if "segments" in case else None
    blocks = PrefillBlocks(128, 128, 4, 2, case.get("matrix_sums", True), 100, case.get("whole", False))
    spec = AttentionSpec(head_dim**-0.5, window, cap)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return flash_attention(
            q, k, v, spec, sinks, generation="v6e", blocks=blocks, causal=causal, segments=segments, return_lse=True,
            interpret=True,
        )  # fmt: skip

    out, lse = run(q, k, v)
    k, v = (jnp.repeat(x, num_heads // num_kv_heads, axis=2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, precision="highest") * spec.scale
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    query, key = jnp.arange(queries)[:, None] + keys - queries, jnp.arange(keys)
    visible = key <= query if causal else jnp.ones((queries, keys), bool)
    if window is not None:
        visible &= key > query - window
    visible = jnp.broadcast_to(visible, scores.shape)
    if segments is not None:
        visible &= (numbers[:, :, None] == numbers[:, None])[:, None]
    scores = jnp.where(visible, scores, -jnp.inf)
    expected_lse = jax.nn.logsumexp(scores, axis=-1)
    if sinks is not None:
        expected_lse = jnp.logaddexp(expected_lse, sinks[:, None])
    weights = jnp.exp(scores - expected_lse[..., None])
    expected = jnp.einsum("BNTS,BSNH->BTNH", weights, v, precision="highest")
    assert float(jnp.abs(out - expected).max()) <= 1e-5
    assert float(jnp.abs(lse - jnp.moveaxis(expected_lse, 1, 2)).max()) <= 1e-5


@pytest.mark.parametrize(("field", "value"), [("generation", "v3"), ("head_dim", 100), ("dtype", "float16")])
def test_unsupported(field: str, value: object) -> None:
    good: dict[str, Any] = dict(num_heads=4, num_kv_heads=2, head_dim=64, generation="v6e")
    check_flash(**good)
    with pytest.raises(UnsupportedError, match=str(value)):
        check_flash(**{**good, field: value})
