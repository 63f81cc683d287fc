"""A model in a few lines of Python: load it by name, give it text, get text."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import jax.numpy as jnp

from ..backends.errors import InvalidParameterError
from ..backends.select import select_backend
from ..models.checkpoints import open_checkpoint, resolve_model
from ..models.errors import TokenizerError
from ..models.families import config_from_hf
from ..models.tokenizer import Tokenizer
from .errors import ContextLengthError, EmptyPromptError
from .generation import Generation
from .programs import Programs, Shape
from .types import Completion, Progress, SamplingParams

MAX_CHUNK = 512
"""Most prompt tokens in one step."""


class LLM:
    """A loaded model.

    Args:
        model: an alias (`distaff models` lists them), a folder, a .gguf file, an Orbax folder or a hub id.
        dtype: "float32" or "bfloat16", of weights, activations and cache.
        backend: what runs it; "auto" picks.
        offline: True never touches the network; None follows HF_HUB_OFFLINE.
        on_progress: called as work goes on.

    Raises:
        DistaffError: the model cannot be found, read or run; the message says why and what to do.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "float32",
        backend: str = "auto",
        offline: bool | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise InvalidParameterError("dtype", dtype, "float32 or bfloat16")
        self.backend = select_backend(backend)
        start = time.perf_counter()

        def report(stage: str) -> Callable[[int, int], None]:
            return lambda done, total: on_progress(Progress(stage, done, total))

        path = resolve_model(str(model), offline=offline, progress=report("resolve"))
        checkpoint = open_checkpoint(path)
        self.config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
        self.backend.check(
            self.config.cache_groups,
            dtype=jnp.dtype(dtype),
            kv_dtype=jnp.dtype(dtype),
            page_size=self.backend.page_size,
        )
        self.tokenizer: Tokenizer | None = None
        self._no_tokenizer: TokenizerError | None = None
        try:
            self.tokenizer = checkpoint.tokenizer()
        except TokenizerError as error:
            # Token ids still work; text is refused with this reason.
            self._no_tokenizer = error
        self._eos_ids = _eos_ids(checkpoint.generation_config, checkpoint.hf_config, self.tokenizer)
        weights = checkpoint.load_weights(self.config, dtype=jnp.dtype(dtype), progress=report("load"))
        compiled = 0

        def on_compile() -> None:
            nonlocal compiled
            compiled += 1
            on_progress(Progress("compile", compiled, 2))

        self._programs = Programs(self.config, weights, self.backend, jnp.dtype(dtype), on_compile)
        self._load_seconds = time.perf_counter() - start

    @overload  # a str is a Sequence[str] too, hence the overlap
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompt: str, params: SamplingParams | None = None
    ) -> Completion: ...
    @overload
    def generate(self, prompt: Sequence[str], params: SamplingParams | None = None) -> list[Completion]: ...

    def generate(
        self, prompt: str | Sequence[str], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Continues a text, or each of several.

        Raises:
            EmptyPromptError, ContextLengthError: the prompt holds no token, or too many.
        """
        if isinstance(prompt, str):
            return self.stream(prompt, params).completion()
        return [self.stream(each, params).completion() for each in prompt]

    def chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, **variables: Any
    ) -> Completion:
        """Answers a conversation through the model's chat template.

        Args:
            messages: {"role": ..., "content": ...} each.
            params: how to sample.
            variables: what else the template reads, such as `tools`.

        Raises:
            ChatTemplateError: the model has no template, or it refused.
        """
        return self.stream(self.chat_ids(messages, **variables), params).completion()

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, ready for the answer."""
        tokenizer = self._text()
        # The template writes special tokens out itself.
        return tokenizer.encode(tokenizer.render_chat(messages, **variables), add_special=False)

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Generation:
        """Continues a text or token ids, an event for each token.

        Raises:
            EmptyPromptError, ContextLengthError: the prompt holds no token, or too many.
            InvalidParameterError: a token id that the vocabulary lacks, or `stop` without a tokenizer.
        """
        params = params or SamplingParams()
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(64))
        if params.stop:
            self._text()
        ids = self._text().encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids or prompt == "":
            raise EmptyPromptError("the prompt is empty, expected at least one token of text")
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise InvalidParameterError("prompt", token, f"token ids from 0 to {self.config.vocab_size - 1}")
        context = self.config.max_positions
        if len(ids) >= context:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, the model's context holds {context} with the answer; "
                f"shorten the prompt to at most {context - 1} tokens"
            )
        generation = Generation(
            self._programs,
            ids,
            params,
            prefill=self._shape(len(ids), min(context, len(ids) + params.max_tokens)),
            context=context,
            eos_ids=self._eos_ids,
            detokenizer=None if self.tokenizer is None else self.tokenizer.detokenizer(),
            load_seconds=self._load_seconds,
        )
        self._load_seconds = 0.0
        return generation

    def _shape(self, num_prompt: int, num_positions: int) -> Shape:
        """Buckets for the prompt's chunks and for the pages of the whole text, so that few programs serve all."""
        num_tokens = self._bucket(min(num_prompt, MAX_CHUNK))
        return Shape(num_tokens, -(-self._bucket(num_positions) // self.backend.page_size))

    def _bucket(self, size: int) -> int:
        return next(bucket for bucket in self.backend.buckets(size) if bucket >= size)

    def _text(self) -> Tokenizer:
        if self.tokenizer is None:
            assert self._no_tokenizer is not None
            raise self._no_tokenizer
        return self.tokenizer


def _eos_ids(generation: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """Tokens that end a text: the generation settings decide, else the tokenizer, else the configuration."""
    for given in (generation.get("eos_token_id"), tokenizer and sorted(tokenizer.eos_ids), config.get("eos_token_id")):
        if given is not None and given != []:
            return frozenset([given] if isinstance(given, int) else given)
    return frozenset()
