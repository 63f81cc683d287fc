"""Tasks of EleutherAI's lm-evaluation-harness, answered by the engine (the extra `eval`)."""

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..backends.errors import UsageError
from .llm import LLM
from .types import SamplingParams

_MAX_TOKENS = 256
"""Of an answer whose task does not say."""


@runtime_checkable
class Asked(Protocol):
    """A request of the harness."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class Answers:
    """What the harness asks a model; all requests of a kind are handed to the engine together."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        if llm.tokenizer is None:
            raise UsageError(f"{llm.path}: a model without a tokenizer answers no tasks; choose one that has it")
        self._llm, self._tokenizer = llm, llm.tokenizer
        self._room = llm.engine.config.context or llm.config.max_positions

    def loglikelihood(self, requests: Sequence[Asked], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of the second text of each request behind the first, and whether it is what greedy choice would write."""
        texts, counts = [], []
        for request in requests:
            context, wanted = request.args
            # Spaces in front of the answer are a part of its first token.
            begins, ends = [self._beginning], self._tokenizer.encode(context + wanted, add_special=False)
            if context.strip():
                begins = self._tokenizer.encode(context.rstrip())
                ends = self._tokenizer.encode(context + wanted)[len(begins) :]
            # Of what is too long the beginning goes.
            texts.append([*begins, *ends][-self._room :])
            counts.append(min(len(ends), len(texts[-1]) - 1))
        found: list[tuple[float, bool]] = []
        for score, count in zip(self._llm.score(texts), counts, strict=True):
            end = slice(len(score.logprobs.logprobs) - count, None)
            likely = bool((score.logprobs.ranks[end] == 1).all())
            found.append((float(score.logprobs.logprobs[end].sum(dtype=np.float64)), likely))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Asked], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that fill the context; each begins with the last token of the one before."""
        pieces: list[list[int]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = [self._beginning, *self._tokenizer.encode(request.args[0], add_special=False)]
            for first in range(0, len(ids) - 1, self._room - 1):
                pieces.append(ids[first : first + self._room])
                owners.append(number)
        sums = np.zeros(len(requests))
        np.add.at(sums, owners, [score.total for score in self._llm.score(pieces)])
        return sums.tolist()

    def generate_until(self, requests: Sequence[Asked], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to what a request says that ends them."""
        running = []
        for request in requests:
            context, told = request.args
            most = min(int(told.get("max_gen_toks", _MAX_TOKENS)), self._room - 1)
            until = told.get("until") or ()
            stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
            temperature = float(told.get("temperature", 0)) if told.get("do_sample") else 0.0
            prompt = self._tokenizer.encode(context)[-(self._room - most) :]
            params = SamplingParams(max_tokens=most, stop=stop, temperature=temperature)
            running.append(self._llm.stream(prompt, params))
        return [generation.completion().text for generation in running]

    @property
    def _beginning(self) -> int:
        """What stands in front of a text that begins with nothing."""
        return min(self._llm.eos_ids) if self._tokenizer.bos_id is None else self._tokenizer.bos_id


def run_tasks(
    llm: LLM, tasks: Sequence[str], *, folder: Path | None = None, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """The figures of each task, by their names.

    Args:
        tasks: names that the harness knows, or that the task files of `folder` define.
        limit: questions of each task; None: all.

    Raises:
        UsageError: the harness is not installed, or there is no such task.
    """
    check_harness()
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    manager = TaskManager(include_path=None if folder is None else str(folder))
    missing = [name for name in tasks if name not in manager.all_tasks]
    if missing:
        raise UsageError(
            f"--tasks {','.join(missing)}: the harness has no such task; 'lm_eval ls tasks' lists them, --task-folder "
            "names a folder with more"
        )
    model = type("EngineLM", (Answers, LM), {})(llm)
    found: Mapping[str, Any] = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=0
    )
    return {name: _figures(told) for name, told in found["results"].items()}


def check_harness() -> None:
    """Raises UsageError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError("--tasks needs the lm-evaluation-harness, which is not installed: pip install 'distaff[eval]'")


def _figures(told: Mapping[str, Any]) -> dict[str, float]:
    """Numbers alone; `acc,none` is `acc`, where no filter has a name."""
    numbers = {name: value for name, value in told.items() if isinstance(value, int | float)}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items()}
