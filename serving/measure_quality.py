"""Loads two models by name and compares them on a text."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from ..backends.base import Backend
from ..backends.compile_cache import enable_compile_cache
from ..backends.errors import InvalidParameterError, UsageError
from ..backends.select import select_backend
from ..models.checkpoints import Checkpoint, cache_dir, open_checkpoint, resolve_model
from ..models.compress import parse_scheme, quantizer
from ..models.compress.sample_text import sample_text
from ..models.families import config_from_hf
from .evaluate import Forward, Quality, check_length, evaluate
from .llm import KV_DTYPES


@dataclass(frozen=True)
class Measured:
    """A model and what it is held in, as LLM takes them."""

    model: str
    dtype: str = "float32"
    quantize: str | None = None
    kv_dtype: str | None = None


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
    if subject.kv_dtype is not None and subject.kv_dtype not in KV_DTYPES:
        raise InvalidParameterError("kv_dtype", subject.kv_dtype, f"one of {', '.join(KV_DTYPES)}")
    chosen = select_backend(backend)
    enable_compile_cache(cache_dir() / "jax")
    opened = _open(subject, offline)
    others = None if reference is None else _open(reference, offline)
    tokenizer = opened.tokenizer()
    if others is not None and others.tokenizer().encode(sample_text("held_out")) != tokenizer.encode(
        sample_text("held_out")
    ):
        raise UsageError(
            f"{reference.model if reference else ''}: its tokens are others than those of {subject.model}, expected "
            "one tokenizer; compare models of one family"
        )
    ids = tokenizer.encode(text or sample_text("held_out"), add_special=False)[:max_tokens]
    check_length(ids)
    model = _forward(subject, opened, chosen, window)
    other = None if reference is None or others is None else _forward(reference, others, chosen, window)
    begins = tokenizer.encode("a")[:1] == [tokenizer.bos_id]
    return evaluate(model, ids, other, bos=tokenizer.bos_id if begins else None, on_window=progress)


def _open(model: Measured, offline: bool | None) -> Checkpoint:
    return open_checkpoint(resolve_model(model.model, offline=offline))


def _forward(model: Measured, checkpoint: Checkpoint, backend: Backend, window: int) -> Forward:
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    held = KV_DTYPES[model.kv_dtype] if model.kv_dtype else model.dtype
    dtype, kv_dtype = jnp.dtype(model.dtype), jnp.dtype(held)
    if window > config.max_positions:
        raise InvalidParameterError("window", window, f"at most {config.max_positions}, the model's own context")
    backend.check(config.cache_groups, dtype=dtype, kv_dtype=kv_dtype, page_size=backend.page_size)
    made = None if model.quantize is None else quantizer(parse_scheme(model.quantize), config)
    weights = checkpoint.load_weights(config, dtype=dtype, made=made, keep=made is None)
    return Forward(config, weights, backend, kv_dtype=kv_dtype, window=window)
