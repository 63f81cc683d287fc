"""Whole checkpoints that other libraries quantised and saved (tests/golden/make_foreign.py) compute what these say."""

import numpy as np
import pytest

from distaff.backends.quantized import is_quantized
from distaff.models.decoder import Weights, flatten

from ...golden.harness import FOREIGN, FP32_BOUND, ROUNDED_RATIO, Golden, Text

KINDS = {
    "awq": {"uint4"},
    "bitsandbytes-fp4": {"fp4"},
    "bitsandbytes-int8": {"int8"},
    "bitsandbytes-nf4": {"nf4"},
    "compressed-tensors-fp8": {"float8_e4m3fn"},
    "compressed-tensors-int4": {"int4"},
    "compressed-tensors-int8": {"int8"},
    "compressed-tensors-int8-weight": {"int8"},
    "gptq-4": {"uint4"},
    "gptq-4-act": set(),
    "gptq-8": {"uint8"},
    "mxfp4": {"float4_e2m1fn"},
}
"""What numbers stay as they are stored; none: all weights are expanded."""


@pytest.fixture(params=KINDS)
def foreign(request: pytest.FixtureRequest) -> Golden:
    return Golden(FOREIGN / request.param)


def logits(golden: Golden, weights: Weights) -> np.ndarray:
    """In two chunks, so that the second reads a cache."""
    text = Text(golden.config, weights)
    return np.concatenate([text.feed(golden.tokens[:11]), text.feed(golden.tokens[11:])])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def test_there_are_no_others() -> None:
    assert {file.parent.name for file in FOREIGN.glob("*/expected.npz")} == KINDS.keys()


def test_expanded_weights(foreign: Golden) -> None:
    assert foreign.logits.std() >= 1
    assert np.abs(logits(foreign, foreign.weights()) - foreign.logits).max() <= FP32_BOUND


def test_weights_as_they_are_stored(foreign: Golden) -> None:
    weights = foreign.stored_weights()
    kept = [leaf for leaf in flatten(weights).values() if is_quantized(leaf)]
    name = foreign.folder.name
    assert {leaf.kind for leaf in kept} == KINDS[name]
    found = logits(foreign, weights)
    if foreign.own is None:
        assert not any(leaf.activations for leaf in kept)
        assert np.abs(found - foreign.logits).max() <= FP32_BOUND
    else:
        assert all(leaf.activations for leaf in kept)
        theirs = rms(foreign.own - foreign.logits)
        print(f"{name}: {rms(found - foreign.logits) / theirs:.2f}, of theirs {rms(found - foreign.own) / theirs:.2f}")
        assert 0 < rms(found - foreign.logits) <= ROUNDED_RATIO * theirs
        assert rms(found - foreign.own) <= ROUNDED_RATIO * theirs
