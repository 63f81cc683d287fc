"""Moving scales changes nothing, and helps where activations have outliers; the choices are the published formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.models.compress import parse_scheme
from distaff.models.compress.calibrate import Inputs, calibrate
from distaff.models.compress.methods import check_method, quantized
from distaff.models.compress.smooth import awq, smooth, smoothquant
from distaff.models.decoder import flatten, unflatten

from ...golden.harness import GOLDEN, Golden, Text

GATED = ("llama31", "gemma2", "qwen3", "opt", "phi3")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) for c in GATED])
def test_a_smoothed_model_computes_the_same(case: str) -> None:
    """Norms with an offset, biases of norms and of matrices, windows, plain and gated layers."""
    golden = Golden(GOLDEN / case)
    weights = golden.weights()
    inputs = calibrate(golden.config, weights, [golden.tokens[:24], golden.tokens[24:40]])
    flat = {path: np.asarray(leaf) for path, leaf in flatten(weights).items()}
    moved = smooth(flat, golden.config, inputs, smoothquant())
    changed = [path for path in flat if not np.array_equal(flat[path], moved[path])]
    assert any("q.weight" in path for path in changed) and any("norm" in path for path in changed)
    made = unflatten({path: jnp.asarray(leaf) for path, leaf in moved.items()})
    logits = Text(golden.config, made).feed(golden.tokens[:40])
    np.testing.assert_allclose(logits, golden.logits[:40], atol=2e-4)


@pytest.mark.slow
def test_inputs_are_what_a_matrix_is_multiplied_with() -> None:
    """The first projection's are the normalised embeddings, which are worked out here by hand."""
    golden = Golden(GOLDEN / "llama31")
    flat, window = flatten(golden.weights()), golden.tokens[:20]
    seen = calibrate(golden.config, golden.weights(), [window])
    x = np.asarray(flat["embedder.table"])[window].astype(np.float64)
    x *= np.asarray(flat["segments.0.layers.0.attention_norm.scale"])[0]
    x = x / np.sqrt(np.square(np.asarray(flat["embedder.table"])[window]).mean(axis=1, keepdims=True) + 1e-5)
    for name in "qkv":
        found = seen[f"segments.0.layers.0.attention.{name}.weight", 0]
        np.testing.assert_allclose(found.products, x.T @ x, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.largest, np.abs(x).max(axis=0), rtol=1e-4)
        assert found.tokens == 20
    assert len(seen) == 7 * golden.config.num_layers


def test_smoothquant_is_the_formula() -> None:
    seen = Inputs(np.eye(2, dtype=np.float32), np.asarray([4.0, 1.0], np.float32), 1)
    matrices = [np.asarray([[1.0, -9.0]]), np.asarray([[0.25, 4.0]])]
    np.testing.assert_allclose(smoothquant(0.5)(matrices, seen), [4**0.5 / 1, 1 / 9**0.5], rtol=1e-6)
    np.testing.assert_allclose(smoothquant(0.75)(matrices, seen), [4**0.75, 1 / 9**0.25], rtol=1e-6)


def test_awq_chooses_the_best_of_its_grid() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 32)) * np.exp(2 * rng.normal(size=32))
    weight = rng.normal(size=(16, 32)).astype(np.float32)

    def rounded(matrix: np.ndarray) -> np.ndarray:
        scale = np.abs(matrix).max(axis=1, keepdims=True) / 7.5
        return np.clip(np.rint(matrix / scale), -8, 7) * scale

    seen = Inputs((x.T @ x).astype(np.float32), np.abs(x).max(axis=0).astype(np.float32), len(x))
    scales = awq(rounded)([weight], seen)
    size = np.sqrt(np.square(x).mean(axis=0))
    errors = []
    for step in range(20):
        each = size ** (step / 20)
        each /= np.sqrt(each.max() * each.min())
        errors.append(np.square(x @ (rounded(weight * each) / each - weight).T).sum())
    own = np.square(x @ (rounded(weight * scales) / scales - weight).T).sum()
    np.testing.assert_allclose(own, min(errors), rtol=0.02)
    assert own < 0.7 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scheme"), [("gptq", "int4:4"), ("awq", "int4:4"), ("smoothquant", "int8"), ("gptq", "int8")]
)
def test_logits_stay_near_by_every_method(method: str, scheme: str) -> None:
    golden = Golden(GOLDEN / "llama31")
    found = parse_scheme(scheme)
    check_method(method, found, golden.config)
    errors = {}
    for name in ("rtn", method):
        weights = golden.weights()
        inputs = calibrate(golden.config, weights, [golden.tokens[:40]])
        made = quantized(weights, golden.config, found, name, inputs)
        logits = Text(golden.config, made).feed(golden.tokens[:40])
        errors[name] = float(np.sqrt(np.square(logits - golden.logits[:40]).mean()) / golden.logits.std())
    print(errors)
    assert errors[method] < 1.1 * errors["rtn"]


@pytest.mark.parametrize(
    ("method", "scheme", "case", "message"),
    [
        ("hqq", "int8", "llama31", "method is 'hqq', expected one of rtn, gptq, awq, smoothquant"),
        ("gptq", "fp8", "llama31", "expected another with fp8: gptq is for whole numbers"),
        ("awq", "int8", "llama31", "expected another with int8: awq is for whole numbers as weights alone"),
        ("smoothquant", "int4", "llama31", "expected another with int4: smoothquant is for rounded activations"),
        ("awq", "int4", "mixtral", "family mixtral: AWQ and SmoothQuant are for layers with"),
        ("smoothquant", "int8", "olmo2", "family olmo2: AWQ and SmoothQuant are for layers with"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(method: str, scheme: str, case: str, message: str) -> None:
    with pytest.raises((InvalidParameterError, UnsupportedError), match=message):
        check_method(method, parse_scheme(scheme), Golden(GOLDEN / case).config)
