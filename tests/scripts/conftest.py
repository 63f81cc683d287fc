"""A fake `LLM` for the command line, and a tiny real model for the commands run as a user runs them."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from distaff.scripts.main import main
from distaff.serving.types import (
    Choice,
    Completion,
    FinishReason,
    Progress,
    PromptLogprobs,
    SamplingParams,
    Timings,
    TokenEvent,
    TokenLogprob,
    Usage,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


class FakeGeneration(Iterator[TokenEvent]):
    """Says the prompt's token ids backwards, one an event; answer k of several, which take turns, adds k to each."""

    def __init__(self, prompt: Sequence[int], params: SamplingParams) -> None:
        self.prompt = tuple(prompt)
        self.params = params
        self.length = params.num_tokens(len(prompt))
        self.said: list[int] = []

    def __next__(self) -> TokenEvent:
        index, choice = divmod(len(self.said), self.params.n)
        if index == self.length:
            raise StopIteration
        token = self.prompt[-1 - index] + choice
        self.said.append(token)
        ended = FinishReason.LENGTH if index == self.length - 1 else None
        return TokenEvent(token, chr(token), ended, choice)

    def completion(self) -> Completion:
        logprobs = None if self.params.logprobs is None else (TokenLogprob(97, -0.5, 2, ((98, -0.25), (97, -0.5))),)
        prompt_logprobs = None if self.params.prompt_logprobs is None else PromptLogprobs.empty(self.prompt, 0)
        answers = [tuple(self.said[choice :: self.params.n]) for choice in range(self.params.n)]
        return Completion(
            choices=tuple(
                Choice(index, "".join(map(chr, said)), said, FinishReason.LENGTH, logprobs)
                for index, said in enumerate(answers)
            ),
            prompt_token_ids=self.prompt,
            usage=Usage(len(self.prompt), len(self.said)),
            timings=Timings(load=1.0, decode=2.0, decoded_tokens=4),
            seed=self.params.seed or 7,
            prompt_logprobs=prompt_logprobs,
        )


class FakeTokenizer:
    """Code points are its tokens."""

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        return "".join(map(chr, ids))


class FakeLLM:
    """Code points are its tokens. It remembers how it was made and asked; `failure` is raised when it is asked."""

    made: list[dict[str, Any]]
    asked: list[SamplingParams]
    messages: list[Sequence[Mapping[str, str]]]
    failure: BaseException | None
    tokenizer: FakeTokenizer | None = FakeTokenizer()
    remarks = ()
    follows = False
    followed = 0

    def __init__(self, model: str, *, on_progress: Callable[[Progress], None], **arguments: Any) -> None:
        self.made.append({"model": model, **arguments})
        on_progress(Progress("load", 1, 2))

    def stream(self, prompt: str | Sequence[int], params: SamplingParams) -> FakeGeneration:
        if self.failure is not None:
            raise self.failure
        self.asked.append(params)
        return FakeGeneration([ord(letter) for letter in prompt] if isinstance(prompt, str) else prompt, params)

    def follow(self) -> None:
        type(self).followed += 1

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        self.messages.append(messages)
        return [ord(letter) for letter in "|".join(message["content"] for message in messages)]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """What `distaff generate` takes for an LLM."""
    kind = type("Fresh", (FakeLLM,), {"made": [], "asked": [], "messages": [], "failure": None})
    monkeypatch.setattr("distaff.serving.LLM", kind)
    return kind


@pytest.fixture
def distaff(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line in this process; returns the exit code. capsys has the output.

    What commands tell JAX by the environment is undone, so that processes of later tests do not hear it.
    """
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        there = name in os.environ
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not there:
            monkeypatch.delenv(name)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["distaff", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights whose tokens are single characters, with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(GOLDEN / "llama31", folder, ignore=shutil.ignore_patterns("expected.npz"))
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    specials = ["<unk>", "<s>", "</s>"]
    letters = [chr(code) for code in range(ord(" "), ord(" ") + size - len(specials))]
    vocabulary = {token: index for index, token in enumerate([*specials, *letters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
