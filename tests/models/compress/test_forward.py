"""The differentiable forward pass: the oracle's logits for every family, texts apart in a row, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from distaff.models.compress.forward import Read, read
from distaff.models.compress.layers import LayerRuns, restacked
from distaff.models.decoder import Weights, flatten, unflatten

from ...golden.harness import CASES, FP32_BOUND, GOLDEN, Golden

_QUICK = {"gemma2", "gpt_oss", "opt_350m", "smollm3"}


@partial(jax.jit, static_argnums=(0, 4), compiler_options={"xla_backend_optimization_level": "0"})
def _read(
    config: LayerRuns,
    weights: Weights,
    tokens: Int[Array, "B S"],
    documents: Int[Array, "B S"],
    remember: bool = True,
) -> Read:
    return read(config, weights, tokens, documents, remember=remember)


def runs(golden: Golden) -> tuple[LayerRuns, Weights]:
    config = LayerRuns.of(golden.config)
    return config, restacked(golden.weights(), golden.config, config)


@pytest.mark.parametrize("case", [c if c in _QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_packed_texts_have_the_logits_of_each_alone(case: str) -> None:
    """Two texts in one row, and one in the next with padding behind it."""
    golden = Golden(GOLDEN / case)
    config, weights = runs(golden)
    text = golden.tokens
    tokens = np.asarray([text[:24] + text[:16], text[:40]])
    documents = np.asarray([[0] * 24 + [1] * 16, [0] * 30 + [1] * 10])
    found = _read(config, weights, jnp.asarray(tokens), jnp.asarray(documents))
    wanted = golden.logits
    np.testing.assert_allclose(found.logits[0, :24], wanted[:24], atol=FP32_BOUND)
    np.testing.assert_allclose(found.logits[0, 24:], wanted[:16], atol=FP32_BOUND)
    np.testing.assert_allclose(found.logits[1, :30], wanted[:30], atol=FP32_BOUND)
    assert found.hidden.shape == (config.num_layers + 1, 2, 40, config.embed_dim)


def test_hidden_states_are_those_between_layers() -> None:
    """Of Gemma 2, whose embeddings are scaled and whose two kinds of layers take turns."""
    golden = Golden(GOLDEN / "gemma2")
    config, weights = runs(golden)
    tokens = jnp.asarray([golden.tokens[:8]])
    found = _read(config, weights, tokens, jnp.zeros_like(tokens))
    embedded = np.asarray(flatten(weights)["embedder.table"])[golden.tokens[:8]] * config.embed_scale
    np.testing.assert_allclose(found.hidden[0, 0], embedded, rtol=1e-5)
    final = np.asarray(found.hidden[-1, 0])
    normed = final / np.sqrt(np.square(final).mean(axis=1, keepdims=True) + 1e-6)
    normed *= 1 + np.asarray(flatten(weights)["final_norm.scale"])
    np.testing.assert_allclose(found.last[0], normed, atol=1e-4)
    assert not np.allclose(found.hidden[1], found.hidden[2])


@pytest.mark.parametrize("case", ["llama31", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_derivatives_are_what_small_steps_find(case: str) -> None:
    golden = Golden(GOLDEN / case)
    config, weights = runs(golden)
    tokens = jnp.asarray([golden.tokens[:12]])

    def loss(flat: dict[str, Array], remember: bool) -> Float[Array, ""]:
        found = _read(config, unflatten(flat), tokens, jnp.zeros_like(tokens), remember)
        return jnp.sin(found.logits).mean() + found.hidden[1].mean()

    flat = flatten(weights)
    slopes, again = (jax.grad(partial(loss, remember=remember))(flat) for remember in (True, False))
    rng = np.random.default_rng(0)
    for path in (
        "embedder.table",
        "segments.0.layers.0.attention.k.weight",
        "segments.0.layers.0.attention_norm.scale",
    ):
        np.testing.assert_allclose(again[path], slopes[path], atol=1e-6)
        way = jnp.asarray(rng.normal(size=flat[path].shape), jnp.float32)
        ends = [float(loss({**flat, path: flat[path] + sign * 1e-3 * way}, True)) for sign in (-1, 1)]
        assert float((slopes[path] * way).sum()) == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=0.02, abs=2e-4)
