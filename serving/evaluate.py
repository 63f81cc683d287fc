"""Loads models by name and compares them on a text."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp

from ..backends.base import Backend
from ..backends.compile_cache import enable_compile_cache
from ..backends.errors import InvalidParameterError, UsageError
from ..backends.select import select_backend
from ..models.checkpoints import Checkpoint, cache_dir, open_checkpoint, resolve_model
from ..models.compress import HeldWeights, held_weights
from ..models.compress.sample_text import sample_text
from ..models.config import ModelConfig
from ..models.families import config_from_hf
from ..models.tokenizer import Tokenizer
from .llm import cache_dtype
from .quality import Forward, Quality, check_length, check_quality, compare, greedy_divergence


@dataclass(frozen=True)
class Measured:
    """A model and what it is held in, as LLM takes them."""

    model: str
    dtype: str = "float32"
    quantize: str | None = None
    kv_dtype: str | None = None


@dataclass(frozen=True)
class Measurement:
    """How a checkpoint that was made is measured, and what it is held against.

    Attributes:
        text, max_tokens, window, backend: as measure_quality takes them.
        max_kl, max_ppl_increase: as check_quality takes them.
    """

    text: str | None = None
    max_tokens: int | None = None
    window: int = 512
    backend: str = "auto"
    max_kl: float | None = None
    max_ppl_increase: float | None = None

    def prepare(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        """Refuses before any work what could not be measured behind it.

        Raises:
            DistaffError: the backend does not run here, the window is too long, or the text too short.
        """
        select_backend(self.backend)
        check_window(self.window, config)
        text_ids(tokenizer, self.text, self.max_tokens)

    def of(self, made: Measured, reference: str, *, offline: bool | None) -> Quality:
        """Of a model against another in fp32.

        Raises:
            QualityError: it is beyond a limit.
            DistaffError: it cannot be measured.
        """
        quality = measure_quality(
            made,
            Measured(reference),
            text=self.text,
            max_tokens=self.max_tokens,
            window=self.window,
            backend=self.backend,
            offline=offline,
        )
        check_quality(quality, max_kl=self.max_kl, max_ppl_increase=self.max_ppl_increase)
        return quality


ON_SAMPLE = Measurement()
"""On the shipped text, against no limit."""


def measure_quality(
    subject: Measured,
    reference: Measured | None = None,
    *,
    text: str | None = None,
    max_tokens: int | None = None,
    window: int = 512,
    backend: str = "auto",
    offline: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Perplexity of a model on a text and, with a reference, its distance from that.

    Args:
        text: to read; the held-out sample by default.
        max_tokens: of the text.
        window: tokens that are read at once, from nothing.
        progress: called with tokens read and their number.

    Raises:
        DistaffError: a model cannot be found, read or run; the vocabularies differ; the text is too short.
    """
    chosen = select_backend(backend)
    enable_compile_cache(cache_dir() / "jax")
    model = _open(subject, chosen, window, offline)
    other = None if reference is None else _open(reference, chosen, window, offline)
    tokenizer = model.checkpoint.tokenizer()
    if other is not None:
        sample = sample_text("held_out")
        if other.checkpoint.tokenizer().encode(sample) != tokenizer.encode(sample):
            raise UsageError(
                f"{other.asked.model}: its tokens are others than those of {subject.model}, expected one tokenizer; "
                "compare models of one family"
            )
    ids = text_ids(tokenizer, text, max_tokens)
    bos = tokenizer.bos_id if tokenizer.encode("a")[:1] == [tokenizer.bos_id] else None
    ours, theirs = model.load(chosen, window), None if other is None else other.load(chosen, window)
    quality = compare(ours, ids, theirs, bos=bos, on_window=progress)
    if theirs is None:
        return quality
    alike, most = greedy_divergence(ours, theirs, ids, bos=bos)
    return replace(quality, greedy_divergence=alike, greedy_tokens=most)


def text_ids(tokenizer: Tokenizer, text: str | None, max_tokens: int | None) -> list[int]:
    """What is read: the beginning of a text, the held-out sample by default.

    Raises:
        InvalidParameterError: it is too short.
    """
    ids = tokenizer.encode(sample_text("held_out") if text is None else text, add_special=False)[:max_tokens]
    check_length(ids)
    return ids


def check_window(window: int, config: ModelConfig) -> None:
    """Raises InvalidParameterError where a model cannot read as much at once."""
    if window > config.max_positions:
        raise InvalidParameterError("window", window, f"at most {config.max_positions}, the model's own context")


@dataclass(frozen=True)
class _Opened:
    """A model of which nothing but the description was read; all that can be refused by that was."""

    asked: Measured
    checkpoint: Checkpoint
    config: ModelConfig
    form: HeldWeights

    def load(self, backend: Backend, window: int) -> Forward:
        dtype = jnp.dtype(self.asked.dtype)
        weights = self.form.load(self.checkpoint, dtype=dtype).weights
        kv_dtype = cache_dtype(self.asked.kv_dtype, self.asked.dtype)
        return Forward(self.form.config, weights, backend, kv_dtype=kv_dtype, window=window)


def _open(asked: Measured, backend: Backend, window: int, offline: bool | None) -> _Opened:
    kv_dtype = jnp.dtype(cache_dtype(asked.kv_dtype, asked.dtype))
    checkpoint = open_checkpoint(resolve_model(asked.model, offline=offline))
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    form = held_weights(asked.quantize, checkpoint, config)
    check_window(window, config)
    backend.check(config.cache_groups, dtype=jnp.dtype(asked.dtype), kv_dtype=kv_dtype, page_size=backend.page_size)
    return _Opened(asked, checkpoint, config, form)
