"""Dense attention: which kernel is chosen and why, and the interpreted one against the reference."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.base import AttentionSpec
from distaff.backends.gpu import dense
from distaff.backends.gpu.blocks import PrefillBlocks
from distaff.backends.gpu.chips import chip_named
from distaff.backends.gpu.dense import choose_dense
from distaff.backends.gpu.prefill import dense_prefill_attention
from distaff.backends.reference import ReferenceBackend

CHIP = chip_named("h100")
PLAIN = AttentionSpec(0.1)
FAST_COMPILE = {"xla_backend_optimization_level": "0"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(chip=chip_named("mi300x")), "cuDNN is for NVIDIA, this is mi300x"),
        (dict(dtype="float32"), "not float32"),
        (dict(head_dim=100), "multiples of 8 up to 256 wide, not 100"),
        (dict(head_dim=192, chip=chip_named("a100")), "multiples of 8 up to 128 wide, not 192"),
        (dict(spec=replace(PLAIN, soft_cap=30.0)), "no soft cap"),
        (dict(sinks=True), "no sinks"),
        (dict(attached=False), "compiled for where it runs"),
    ],
)
def test_what_cudnn_cannot_do_is_done_by_triton(change: dict[str, object], reason: str) -> None:
    common = dict(chip=CHIP, attached=True, dtype="bfloat16", head_dim=128, spec=PLAIN)
    assert choose_dense(**common).kernel == "cudnn"  # pyright: ignore[reportArgumentType]
    choice = choose_dense(**common | change)  # pyright: ignore[reportArgumentType]
    assert choice.kernel == "triton" and reason in choice.reason


@pytest.mark.parametrize("capability", ["8.0", "9.0", "10.0", "12.1"])
def test_a_window_is_no_obstacle_to_cudnn(capability: str) -> None:
    chip = replace(CHIP, capability=capability)
    choice = choose_dense(chip, attached=True, dtype="float16", head_dim=64, spec=replace(PLAIN, window=7))
    assert choice.kernel == "cudnn"


@partial(jax.jit, static_argnums=5, compiler_options=FAST_COMPILE)
def reference(
    q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array | None, lengths: jax.Array, spec: AttentionSpec
) -> jax.Array:
    return ReferenceBackend().dense_attention(q, k, v, spec, sinks, lengths=lengths)


@partial(jax.jit, static_argnums=5, compiler_options=FAST_COMPILE)
def interpreted(
    q: jax.Array, k: jax.Array, v: jax.Array, sinks: jax.Array | None, lengths: jax.Array, spec: AttentionSpec
) -> tuple[jax.Array, ...]:
    blocks = PrefillBlocks(rows=32, keys=16, warps=4, stages=2)
    return dense_prefill_attention(
        q, k, v, spec, sinks, chip=CHIP, lengths=lengths, blocks=blocks, interpret=True, return_lse=True
    )


@pytest.mark.parametrize(
    ("spec", "sinks"), [(PLAIN, False), (AttentionSpec(0.3, window=20, soft_cap=2.0), True)], ids=["plain", "masked"]
)
@given(lengths=st.lists(st.sampled_from([0, 1, 15, 16, 17, 31, 45]), min_size=3, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_each_row_attends_to_its_own_tokens(spec: AttentionSpec, sinks: bool, lengths: list[int], seed: int) -> None:
    """Tokens behind a row's length hold NaN."""
    rng, shape = np.random.default_rng(seed), (3, 45)
    q, k, v = (rng.normal(size=(*shape, heads, 20)).astype(np.float32) for heads in (6, 2, 2))
    logits = jnp.asarray(rng.normal(size=6), jnp.float32) if sinks else None
    inside = (np.arange(45) < np.asarray(lengths)[:, None])[..., None, None]
    sizes = jnp.asarray(lengths, jnp.int32)
    want = reference(*(np.where(inside, x, 0) for x in (q, k, v)), logits, sizes, spec)
    out, lse = interpreted(*(np.where(inside, x, np.nan) for x in (q, k, v)), logits, sizes, spec)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.isneginf(lse), ~np.broadcast_to(inside[..., 0], lse.shape))


def test_cudnn_is_given_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window counts the query's own position, cuDNN's the ones before it."""

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, **options: object) -> jax.Array:
        assert options["implementation"] == "cudnn" and options["is_causal"] and options["scale"] == 0.1
        assert options["local_window_size"] == (6, 0)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    q, k = jnp.ones((2, 5, 4, 64), jnp.bfloat16), jnp.ones((2, 5, 2, 64), jnp.bfloat16)
    out = dense.dense_attention(
        q, k, k, replace(PLAIN, window=7), chip=CHIP, attached=True, lengths=jnp.asarray([5, 2], jnp.int32)
    )
    assert (out[0] == 1).all() and (out[1, :2] == 1).all() and (out[1, 2:] == 0).all()
