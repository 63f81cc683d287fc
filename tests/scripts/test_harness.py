"""What the lm-evaluation-harness is told is what the model finds of the same tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distaff.serving import LLM, SamplingParams
from distaff.serving.harness import Answers

CONTEXT = 48


@dataclass(frozen=True)
class Asked:
    args: tuple[Any, ...]


@pytest.mark.slow
def test_answers_are_the_models(tiny_model: Path) -> None:
    llm = LLM(tiny_model, backend="cpu", context=CONTEXT, max_batch=4)
    assert llm.tokenizer is not None
    answers, encode = Answers(llm), llm.tokenizer.encode

    def logprobs(ids: list[int]) -> np.ndarray:
        return llm.score([ids])[0].logprobs.logprobs

    pairs = [("The ferry was", " late again"), ("The ferry was ", "late again"), ("", "late")]
    found = answers.loglikelihood([Asked(pair) for pair in pairs])
    whole, begins = encode("The ferry was late again"), encode("The ferry was")
    wanted = float(logprobs(whole)[len(begins) - 1 :].sum())
    # Wherever the space is written, it is the second text's.
    assert found[0][0] == pytest.approx(wanted, rel=1e-5) and found[1] == found[0]
    greedy = llm.generate("The ferry was", SamplingParams(temperature=0, max_tokens=1)).token_ids
    assert found[0][1] == (len(whole) == len(begins) + 1 and whole[-1] == greedy[0])
    start = min(llm.eos_ids) if llm.tokenizer.bos_id is None else llm.tokenizer.bos_id
    assert found[2][0] == pytest.approx(float(logprobs([start, *encode("late", add_special=False)]).sum()), rel=1e-5)

    text = "ferry boat " * 40
    ids = [start, *encode(text, add_special=False)]
    assert len(ids) > 2 * CONTEXT
    windows = [ids[first : first + CONTEXT] for first in range(0, len(ids) - 1, CONTEXT - 1)]
    assert sum(len(window) - 1 for window in windows) == len(ids) - 1
    wanted = sum(float(logprobs(window).sum()) for window in windows)
    assert answers.loglikelihood_rolling([Asked((text,))])[0] == pytest.approx(wanted, rel=1e-5)

    written = llm.generate("The ferry was", SamplingParams(temperature=0, max_tokens=6)).text
    assert answers.generate_until([Asked(("The ferry was", {"max_gen_toks": 6, "until": None}))]) == [written]
    ends = written[len(written) // 2]
    cut = answers.generate_until([Asked(("The ferry was", {"max_gen_toks": 6, "until": [ends, ""]}))])
    assert cut == [written[: written.index(ends)]]
    llm.close()
