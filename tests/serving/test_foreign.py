"""Engines on whole checkpoints that other libraries quantised and saved (tests/golden/make_foreign.py)."""

from contextlib import closing

import numpy as np
import pytest
from scipy.special import log_softmax

from distaff.serving import LLM

from ..golden.harness import FOREIGN, FP32_BOUND, Golden, Text

QUICK = ("bitsandbytes-int8", "compressed-tensors-int8", "gptq-4")
CASES = [
    pytest.param(file.parent.name, quantize, marks=() if name in QUICK and quantize is None else pytest.mark.slow)
    for file in sorted(FOREIGN.glob("*/expected.npz"))
    for name in [file.parent.name]
    for quantize in (None, "none")
]
"""By default numbers stay as they are stored, where any can; "none" expands them all."""


def probabilities(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Logarithms, of each token but the first."""
    return np.take_along_axis(log_softmax(logits, axis=-1)[:-1], np.asarray(tokens)[1:, None], axis=-1)[:, 0]


@pytest.mark.parametrize(("name", "quantize"), CASES)
def test_probabilities(name: str, quantize: str | None) -> None:
    golden = Golden(FOREIGN / name)
    with closing(LLM(golden.folder, quantize=quantize, backend="cpu", max_batch=2, context=64)) as llm:
        found = np.asarray(llm.score([golden.tokens])[0].logprobs.logprobs)
    rounds = golden.own is not None and quantize is None
    # Whose difference from the library's is measured in tests/models/checkpoints/test_foreign_checkpoints.py.
    logits = Text(golden.config, golden.stored_weights()).feed(golden.tokens) if rounds else golden.logits
    wanted = probabilities(logits, golden.tokens)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FP32_BOUND)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "expanded"), [("tensor=2", False), ("tensor=4", True)])
def test_blocks_on_several_devices(layout: str, expanded: bool) -> None:
    """nf4: four devices would cut the two blocks of a row of `down`, which is expanded."""
    golden = Golden(FOREIGN / "bitsandbytes-nf4")
    with closing(LLM(golden.folder, layout=layout, backend="cpu", max_batch=2, context=64)) as llm:
        found, remarks = np.asarray(llm.score([golden.tokens])[0].logprobs.logprobs), llm.remarks
    np.testing.assert_allclose(found, probabilities(golden.logits, golden.tokens), rtol=0, atol=FP32_BOUND)
    assert len(remarks) == expanded
    for remark in remarks:
        assert remark.startswith("expanded, since its groups would lie on several devices: ")
        assert "down" in remark and "gate" not in remark
