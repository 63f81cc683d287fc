"""SmolLM2-135M-Instruct from its GGUF file: the greedy tokens of `transformers` on the same dequantised weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from distaff.serving import LLM, SamplingParams

from ..golden.harness import MIN_GAP

GOLDEN = Path(__file__).parent.parent / "golden" / "smollm2_instruct.json"
ROWS: list[dict[str, Any]] = json.loads(GOLDEN.read_text("utf-8"))["rows"]
MIN_COMPARED = 16


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> LLM:
    return LLM(smollm2, dtype="float32")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=pytest.mark.slow)
        for row, name in zip(ROWS, ("text", "code", "japanese", "chat"), strict=True)
    ],
)
def test_greedy_tokens(llm: LLM, row: dict[str, Any]) -> None:
    """Made by tests/golden/make_smollm2.py; a prompt given as messages goes through the chat template."""
    params = SamplingParams(max_tokens=len(row["token_ids"]), temperature=0)
    answer = llm.chat(row["messages"], params) if "messages" in row else llm.generate(row["prompt"], params)
    assert list(answer.prompt_token_ids) == row["prompt_token_ids"]

    compared = next((i for i, gap in enumerate(row["gaps"]) if gap < MIN_GAP), len(row["gaps"]))
    print(f"{compared} of {len(row['gaps'])} tokens compared")
    assert compared >= MIN_COMPARED
    assert list(answer.token_ids)[:compared] == row["token_ids"][:compared]
    if compared == len(row["token_ids"]):
        assert answer.text == row["text"]


def test_four_prompts_of_64_tokens_and_one_chat() -> None:
    assert [len(row["token_ids"]) for row in ROWS] == [64] * 4
    assert sum("messages" in row for row in ROWS) == 1
