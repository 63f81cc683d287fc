"""Engines that multiply a checkpoint's numbers as they are stored: the tokens are those of the expanded weights."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distaff.models.checkpoints import convert
from distaff.serving import LLM, SamplingParams

from ..golden.harness import GOLDEN
from ..models.checkpoints.mxfp4_folder import write_mxfp4

PROMPTS = [list(range(3, 20)), list(range(40, 77))]
GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


def mxfp4(folder: Path) -> Path:
    return write_mxfp4(GOLDEN / "gpt_oss", folder / "model", exponents=(119, 124))


def gguf(folder: Path) -> Path:
    convert(str(GOLDEN / "llama31"), folder / "made.gguf", to="gguf", dtype="q8_0")
    return folder / "made.gguf"


def scores(model: Path, **options: Any) -> np.ndarray:
    with closing(LLM(model, max_batch=2, context=96, **options)) as llm:
        return np.asarray(llm.score([PROMPTS[1]])[0].logprobs.logprobs)


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "cpu"])
@pytest.mark.parametrize("make", [mxfp4, gguf])
def test_probabilities_are_those_of_expanded_weights(make: Any, backend: str, tmp_path: Path) -> None:
    model = make(tmp_path)
    stays, expanded = (scores(model, quantize=each, backend=backend) for each in ("stored", "none"))
    assert expanded.std() > 0.05
    np.testing.assert_allclose(stays, expanded, atol=2e-5)


def test_gpt_oss_is_served_as_it_ships(tmp_path: Path) -> None:
    """Nobody asked for anything: experts take a quarter of what they take in bfloat16."""
    model = mxfp4(tmp_path)
    taken: dict[str | None, float] = {}
    for quantize in (None, "none"):
        with closing(LLM(model, quantize=quantize, backend="cpu", dtype="bfloat16", max_batch=2, context=96)) as llm:
            taken[quantize] = llm.weight_bytes
    assert taken["none"] == 2
    assert taken[None] < 1  # tables and attention of this one are half of all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layout", "expanded"), [(mxfp4, "tensor=2", ""), (mxfp4, "tensor=4", "down"), (gguf, "tensor=2", "")]
)
def test_layouts_write_the_tokens_of_one_device(make: Any, layout: str, expanded: str, tmp_path: Path) -> None:
    """Where a layout would cut groups, as of 64 inputs in four, those weights are expanded, and it says so."""
    model = make(tmp_path)

    def texts(layout: str | None) -> tuple[list[tuple[int, ...]], tuple[str, ...]]:
        with closing(LLM(model, quantize="stored", layout=layout, backend="cpu", max_batch=2, context=96)) as llm:
            return [tuple(llm.stream(prompt, GREEDY).completion().token_ids) for prompt in PROMPTS], llm.remarks

    (alone, nothing), (split, remarks) = texts(None), texts(layout)
    assert split == alone and not nothing
    assert bool(remarks) == bool(expanded)
    for remark in remarks:
        assert remark.startswith("expanded, since its groups would lie on several devices: segments.0")
        assert f"experts.{expanded}" in remark and "experts.gate" not in remark
