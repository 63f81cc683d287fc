"""Whole checkpoints that other libraries quantised: blocks multiplied as they are stored, on the host by torch."""

from contextlib import closing

import numpy as np
import pytest

from distaff.serving import LLM

from ...golden.harness import FOREIGN, FP32_BOUND, Golden, Text
from ...serving.test_foreign import probabilities

CASES = sorted(file.parent.name for file in FOREIGN.glob("*/expected.npz"))


@pytest.mark.parametrize("name", CASES)
def test_probabilities(name: str) -> None:
    golden = Golden(FOREIGN / name)
    with closing(LLM(golden.folder, backend="torch:cpu", max_batch=2, context=64)) as llm:
        found = np.asarray(llm.score([golden.tokens])[0].logprobs.logprobs)
    # Libraries that round activations do so in their own way.
    logits = golden.logits if golden.own is None else Text(golden.config, golden.stored_weights()).feed(golden.tokens)
    wanted = probabilities(logits, golden.tokens)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FP32_BOUND)
