"""Moving scales changes nothing, and helps where activations have outliers; the choices are the published formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress import Quantizer, parse_scheme, quantizer
from distaff.models.compress.calibrate import Inputs, Passage, calibrate, layer_paths
from distaff.models.compress.methods import check_method, quantized
from distaff.models.compress.smooth import Tied, awq, smooth, smoothquant, smoothquant_scales
from distaff.models.decoder import flatten, unflatten

from ...golden.harness import GOLDEN, Golden, Text

GATED = ("llama31", "gemma2", "qwen3", "opt", "phi3")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) for c in GATED])
def test_a_smoothed_model_computes_the_same(case: str) -> None:
    """Norms with an offset, biases of norms and of matrices, windows, plain and gated layers."""
    golden = Golden(GOLDEN / case)
    config, flat = golden.config, {path: np.array(leaf) for path, leaf in flatten(golden.weights()).items()}
    passage = Passage(config, golden.weights(), [golden.tokens[:24], golden.tokens[24:40]], samples=True)
    changed: set[str] = set()
    for number, entries in enumerate(layer_paths(config)):
        leaves = {key: flat[path][place] for key, (path, place) in entries.items()}
        seen = {key: inputs[0] for key, inputs in passage.watch(number, leaves, goes_on=True).items()}
        moved, _ = smooth(leaves, config, config.layers[number], seen, smoothquant("int8"))
        for key, (path, place) in entries.items():
            if not np.array_equal(moved[key], flat[path][place]):
                changed.add(key)
            flat[path][place] = moved[key]
    assert {"attention.q.weight", "attention_norm.scale"} <= changed
    made = unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})
    logits = Text(config, made).feed(golden.tokens[:40])
    np.testing.assert_allclose(logits, golden.logits[:40], atol=2e-4)


def test_inputs_behind_moved_scales_are_those_that_are_told() -> None:
    """Also of heads that share a head of values."""
    golden = Golden(GOLDEN / "llama31")
    config, window = golden.config, [golden.tokens[:24]]
    flat = flatten(golden.weights())
    leaves = {key: np.asarray(flat[path][number]) for key, (path, number) in layer_paths(config)[0].items()}
    seen = Passage(config, golden.weights(), window, samples=True).watch(0, leaves)
    single = {key: inputs[0] for key, inputs in seen.items()}
    moved, told = smooth(leaves, config, config.layers[0], single, smoothquant("int8"))
    found = Passage(config, golden.weights(), window).watch(0, moved)
    assert set(found) == set(told)
    for key, inputs in told.items():
        np.testing.assert_allclose(found[key][0].largest, inputs.largest, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[key][0].products, inputs.products, rtol=1e-3, atol=1e-4)


def test_inputs_of_experts_are_apart() -> None:
    """Each token goes to two of them, and their sums are those of what goes into all."""
    golden = Golden(GOLDEN / "mixtral")
    config, flat = golden.config, flatten(golden.weights())
    leaves = {key: flat[path][number] for key, (path, number) in layer_paths(config)[0].items()}
    seen = Passage(config, golden.weights(), [golden.tokens[:24]]).watch(0, leaves)
    experts, router = seen["mlp.experts.gate"], seen["mlp.router.weight"][0]
    assert len(experts) == leaves["mlp.experts.gate"].shape[0] and experts is seen["mlp.experts.up"]
    assert sum(each.tokens for each in experts) == 2 * router.tokens == 48
    summed = np.sum([each.products for each in experts], axis=0)
    np.testing.assert_allclose(summed, 2 * router.products, rtol=1e-3, atol=1e-3)
    x = np.max([each.largest for each in experts], axis=0)
    np.testing.assert_allclose(x, router.largest, rtol=1e-5)


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
    np.testing.assert_allclose(smoothquant_scales(matrices, seen, 0.5), [4**0.5 / 1, 1 / 9**0.5], rtol=1e-6)
    np.testing.assert_allclose(smoothquant_scales(matrices, seen, 0.75), [4**0.75, 1 / 9**0.25], rtol=1e-6)
    tied = smoothquant_scales(matrices, seen, 0.5, Tied(heads=2, width=1))
    np.testing.assert_allclose(tied, [(4 / 9) ** 0.5] * 2, rtol=1e-6)


def test_smoothquant_takes_outliers_from_the_inputs() -> None:
    """One channel is a hundred times as large: alone it decides every token's scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32)).astype(np.float32)
    x[:, 5] *= 100
    weight = rng.normal(size=(16, 32)).astype(np.float32)
    seen = Inputs(x.T @ x, np.abs(x).max(axis=0), len(x), [x])

    def error(scales: np.ndarray) -> float:
        inputs, matrix = x / scales, weight * scales
        each, own = np.abs(inputs).max(axis=1, keepdims=True) / 127, np.abs(matrix).max(axis=1, keepdims=True) / 127.5
        rounded = np.rint(inputs / each) * each, np.clip(np.rint(matrix / own), -128, 127) * own
        return float(np.square(rounded[0] @ rounded[1].T - x @ weight.T).sum())

    scales = smoothquant("int8")([weight], seen, None)
    published = [error(smoothquant_scales([weight], seen, step / 20)) for step in range(1, 20)]
    # Every second strength is tried, and judged with weights whose scales have the least error, not the largest weight.
    assert error(scales) <= 1.1 * min(published) < 0.2 * error(np.ones(32))


def test_awq_chooses_the_best_of_its_grid() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 32)) * np.exp(2 * rng.normal(size=32))
    weight = rng.normal(size=(16, 32)).astype(np.float32)

    def rounded(matrix: np.ndarray) -> np.ndarray:
        scale = np.abs(matrix).max(axis=1, keepdims=True) / 7.5
        return np.clip(np.rint(matrix / scale), -8, 7) * scale

    seen = Inputs((x.T @ x).astype(np.float32), np.abs(x).max(axis=0).astype(np.float32), len(x))
    scales = awq(rounded)([weight], seen, None)
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
    ("method", "scheme"),
    [("gptq", "int4:4"), ("awq", "int4:4"), ("smoothquant", "int8"), ("gptq", "int8"), ("smoothquant", "fp8")],
)
def test_logits_stay_near_by_every_method(method: str, scheme: str) -> None:
    golden = Golden(GOLDEN / "llama31")
    found = parse_scheme(scheme)
    check_method(method, found, golden.config)
    errors = {}
    made = {
        "rtn": open_checkpoint(golden.folder).load_weights(
            golden.config, dtype=jnp.float32, made=quantizer(found, golden.config)
        ),
        method: quantized(golden.weights(), golden.config, Quantizer(found), method, [golden.tokens[:40]]),
    }
    for name, weights in made.items():
        logits = Text(golden.config, weights).feed(golden.tokens[:40])
        errors[name] = float(np.sqrt(np.square(logits - golden.logits[:40]).mean()) / golden.logits.std())
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
