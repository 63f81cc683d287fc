"""Rounding to nearest: every family's logits stay near those of fp32, and what does not fit is refused."""

import json
from functools import cache
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import open_checkpoint, shipped_configs
from distaff.models.compress import SCHEMES, Quantizer, parse_scheme, quantizer
from distaff.models.decoder import Weights, WeightSpec, flatten, weight_specs
from distaff.models.families import config_from_hf

from ...golden.harness import CASES, GOLDEN, Golden, Text

DEFAULT = "gpt_oss"
BOUNDS = {"int8-weight": 0.25, "int8": 0.4, "fp8-weight": 0.3, "fp8": 0.5}
"""Root mean square error of the logits over their standard deviation: rows are 32 wide, and routers choose others."""
SLOW = ("cohere", "glm4_moe", "opt", "phi3", "qwen3_moe")  # the soak has every family


def loaded(golden: Golden, scheme: str) -> Weights:
    made = quantizer(parse_scheme(scheme), golden.config)
    return open_checkpoint(golden.folder).load_weights(golden.config, dtype=jnp.float32, made=made)


@cache
def golden_of(case: str) -> Golden:
    return Golden(GOLDEN / case)


def marks(case: str, scheme: str) -> Any:
    if (case, scheme) == (DEFAULT, "int8"):
        return ()
    return pytest.mark.slow if case in (DEFAULT, *SLOW) else pytest.mark.soak


@pytest.mark.parametrize(
    ("case", "scheme"),
    [
        pytest.param(case, scheme, marks=marks(case, scheme))
        for case in CASES
        for scheme in (BOUNDS if case == DEFAULT else ("int8", "int8-weight"))
    ],
)
def test_logits_stay_near(case: str, scheme: str) -> None:
    golden = golden_of(case)
    weights = loaded(golden, scheme)
    logits = Text(golden.config, weights).feed(golden.tokens[:40])
    error = np.sqrt(np.square(logits - golden.logits[:40]).mean()) / golden.logits.std()
    print(f"{case}, {scheme}: {error:.4f}")
    assert 0 < error < BOUNDS[scheme]
    kinds = {path: leaf.kind for path, leaf in flatten(weights).items() if isinstance(leaf, Quantized)}
    assert any(path.endswith("attention.q.weight") for path in kinds) and "embedder.table" in kinds
    assert not any("router" in path or "norm" in path or "positions" in path for path in kinds)


def nearest(weight: np.ndarray, made: Quantized, spec: WeightSpec, bound: float, group: int | None) -> np.ndarray:
    """The matrix that `made` stands for, its numbers being the nearest ones on a grid that ends at the largest."""
    inner = prod(spec.shape[len(spec.shape) - spec.contracted :])
    rows = weight.reshape(-1, group or inner).astype(np.float64)
    scale = np.abs(rows).max(axis=1, keepdims=True) / bound
    numbers = np.asarray(dequantized(made), np.float64).reshape(rows.shape) / scale
    np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-3)
    # The largest number of a group is a tie between the last of the grid and one behind it.
    assert np.abs(numbers - rows / scale).max() < 0.5 + 1e-3 and np.abs(numbers).max() < bound + 0.5 + 1e-3
    return (np.rint(numbers) * scale).reshape(weight.shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("case", [DEFAULT, "llama31"])
@pytest.mark.parametrize(("scheme", "bound", "group"), [("int8-weight", 127.5, None), ("int4:2", 7.5, 2)])
def test_logits_are_those_of_the_nearest_numbers(case: str, scheme: str, bound: float, group: int | None) -> None:
    """Near those of fp32 they cannot be asked to be with four bits, by which routers choose other experts."""
    golden = golden_of(case)
    weights = loaded(golden, scheme)
    small = flatten(weights)

    def by_numpy(spec: WeightSpec, leaf: Any) -> Any:
        made = small[spec.path]
        if not isinstance(made, Quantized):
            return leaf
        grid = (127.5, None) if "vocab" in spec.axes else (bound, group)
        return jnp.asarray(nearest(np.asarray(leaf), made, spec, *grid))

    floats = open_checkpoint(golden.folder).load_weights(golden.config, dtype=jnp.float32, made=by_numpy)
    ours, theirs = (Text(golden.config, each).feed(golden.tokens[:40]) for each in (weights, floats))
    assert np.abs(ours - golden.logits[:40]).max() > 1e-3  # something was rounded
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_the_largest_of_a_channel_goes_to_the_end_of_the_type() -> None:
    """By hand: scales are 10 / 127.5 and 2 / 127.5, 10 -> 127.5 -> cut to 127."""
    spec = WeightSpec("w", "w", (2, 4), jnp.dtype("float32"), ("mlp", "embed"), None, 1)
    made = Quantizer(SCHEMES["int8"])(spec, jnp.asarray([[1.0, -10.0, 10.0, 0.0], [2.0, 1.0, -1.0, 0.5]]))
    np.testing.assert_array_equal(made.values, [[13, -128, 127, 0], [127, 64, -64, 32]])
    np.testing.assert_allclose(made.scale, [[10 / 127.5], [2 / 127.5]], rtol=1e-6)
    assert made.activations


@pytest.mark.parametrize("group", [2, 8, 16, 32])
def test_groups_run_over_heads_and_their_widths(group: int) -> None:
    """Of an output projection [D, N, H] with H = 8: groups within a head, of one, of two and of four heads."""
    rng = np.random.default_rng(0)
    spec = WeightSpec("o", "o", (3, 4, 8), jnp.dtype("float32"), ("embed", "heads", "head_dim"), None, 2)
    weight = rng.normal(size=(3, 4, 8)).astype(np.float32)
    made = Quantizer(parse_scheme(f"int4:{group}"))(spec, jnp.asarray(weight))
    groups = weight.reshape(3, -1, group).astype(np.float64)
    scale = np.abs(groups).max(axis=2, keepdims=True) / 7.5
    numbers = np.asarray(dequantized(made), np.float64).reshape(groups.shape) / scale
    np.testing.assert_allclose(numbers, np.rint(numbers), atol=1e-4)
    # The nearest: the largest number of a group is a tie, 7.5 or -7.5, of which 8 is cut.
    assert np.abs(numbers - groups / scale).max() < 0.5 + 1e-4 and numbers.min() > -8.001 and numbers.max() < 7.001


def test_groups_that_do_not_divide_are_refused_before_anything_is_read() -> None:
    golden = golden_of("llama2")
    with pytest.raises(InvalidParameterError, match=r"'int4:50', expected groups that divide the 36 inputs of segm"):
        quantizer(parse_scheme("int4:50"), golden.config)


@pytest.mark.parametrize(
    ("scheme", "most"), [("int8", 0.53), ("int8-weight", 0.53), ("int4", 0.30), ("int4:128", 0.30)]
)
def test_matrices_are_as_small_as_promised(scheme: str, most: float) -> None:
    """Llama-3.1-8B, by arithmetic."""
    config = config_from_hf(json.loads(shipped_configs()["llama-3.1-8b"].read_text()))
    made = quantizer(parse_scheme(scheme), config)
    plain = small = 0
    for spec in weight_specs(config, jnp.bfloat16).values():
        if made.plan(spec) is not None and "vocab" not in spec.axes:
            leaf = made.abstract(spec)
            plain += 2 * prod(spec.shape)
            small += leaf.nbytes
    print(f"{scheme}: {small / plain:.4f}")
    assert 0.25 < small / plain < most
