"""How far one model is from another on a text: perplexity, divergence, agreement."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ..backends.base import Backend, PyTree
from ..backends.errors import InvalidParameterError
from ..models.config import ModelConfig
from ..models.decoder import Weights, bind
from ..models.kv_cache import KVCache, RaggedBatch, allocate_cache
from ..models.layers import Machine
from ..models.placement import OneDevice

MIN_TOKENS = 64
"""A text of fewer tokens says nothing."""


@dataclass(frozen=True)
class Quality:
    """What a text tells of a model, and of its distance from a reference.

    Attributes:
        tokens: that were predicted.
        perplexity: exp of the mean of -log p of the text's own tokens.
        reference_perplexity: of the reference.
        mean_kl, p99_kl, max_kl: KL(reference || model) in nats over the places of the text.
        top1_agreement: share of places where both find the same token the most likely.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    mean_kl: float | None = None
    p99_kl: float | None = None
    max_kl: float | None = None
    top1_agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Forward:
    """A model that reads windows of a text, each from an empty cache, and scores every place of them.

    Args:
        weights: in the checkpoint's form, consumed.
        kv_dtype: of the cache, through which all attention goes.
        window: longest text in tokens.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, backend: Backend, *, kv_dtype: DTypeLike, window: int
    ) -> None:
        self._weights = backend.prepare_params(weights)
        pages = -(-window // backend.page_size)
        tables = (jnp.arange(pages, dtype=jnp.int32)[None],) * len(config.cache_groups)
        machine = Machine(backend, OneDevice())

        def run(
            weights: PyTree, cache: KVCache, tokens: Int[Array, "T"], count: Int[Array, ""]
        ) -> tuple[Float[Array, "T V"], KVCache]:
            starts = jnp.stack([jnp.int32(0), count])
            batch = RaggedBatch(tokens, starts, count[None], tables, jnp.zeros((1, 1), jnp.int32))
            decoder = bind(config, weights)
            hidden, cache = decoder(batch, cache, machine)
            return decoder.logits(hidden, machine), cache

        def empty() -> KVCache:
            num_pages = [pages] * len(config.cache_groups)
            return allocate_cache(config, backend, num_pages=num_pages, page_size=backend.page_size, dtype=kv_dtype)

        self.window = window
        self._cache = empty()
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (self._weights, self._cache))
        tokens, count = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((window,), ()))
        self._run = backend.compile(run, (*abstract, tokens, count), donate=(1,))

    def __call__(self, tokens: Sequence[int]) -> Float[Array, "T V"]:
        """fp32 scores behind each token, and behind padding up to the window."""
        padded = np.zeros(self.window, np.int32)
        padded[: len(tokens)] = tokens
        logits, self._cache = self._run(self._weights, self._cache, padded, np.int32(len(tokens)))
        return logits


@runtime_checkable
class Scores(Protocol):
    """What scores the places of a window; Forward does."""

    @property
    def window(self) -> int: ...

    def __call__(self, tokens: Sequence[int]) -> Float[Array, "T V"]: ...


def compare(
    model: Scores,
    ids: Sequence[int],
    reference: Scores | None = None,
    *,
    bos: int | None = None,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Reads a text in windows and compares what both models expect at every place.

    Args:
        model, reference: with windows of one length.
        ids: the text.
        bos: what every window begins with.
        on_window: called with tokens done and their number.

    Raises:
        InvalidParameterError: the text has fewer than MIN_TOKENS tokens.
    """
    check_length(ids)
    costs, own, divergences, agreed, done = [], [], [], [], 0
    for window in windows(ids, model.window, bos):
        logits, targets = model(window), np.zeros(model.window, np.int32)
        targets[: len(window) - 1] = window[1:]
        kept = slice(0, len(window) - 1)
        if reference is None:
            costs.append(np.asarray(_costs(logits, jnp.asarray(targets)))[kept])
        else:
            each = _compare(logits, reference(window), jnp.asarray(targets))
            for found, new in zip((costs, own, divergences, agreed), each, strict=True):
                found.append(np.asarray(new)[kept])
        done += len(window)
        on_window(done, len(ids))
    cost = np.concatenate(costs)
    quality = Quality(len(cost), float(np.exp(cost.mean(dtype=np.float64))))
    if reference is None:
        return quality
    kl = np.concatenate(divergences).astype(np.float64)
    return Quality(
        quality.tokens,
        quality.perplexity,
        float(np.exp(np.concatenate(own).mean(dtype=np.float64))),
        float(kl.mean()),
        float(np.quantile(kl, 0.99)),
        float(kl.max()),
        float(np.concatenate(agreed).mean()),
    )


def check_length(ids: Sequence[int]) -> None:
    """Raises InvalidParameterError where a text has fewer than MIN_TOKENS tokens."""
    if len(ids) < MIN_TOKENS:
        raise InvalidParameterError("text", f"{len(ids)} tokens", f"at least {MIN_TOKENS} tokens")


def windows(ids: Sequence[int], size: int, bos: int | None) -> Iterator[list[int]]:
    """The text in pieces of at most `size` tokens, each behind the beginning of a text where there is such a token."""
    start = [] if bos is None else [bos]
    step = size - len(start)
    for first in range(0, len(ids), step):
        piece = [*start, *ids[first : first + step]]
        if len(piece) > 1:
            yield piece


@jax.jit
def _costs(logits: Float[Array, "T V"], targets: Int[Array, "T"]) -> Float[Array, "T"]:
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


@jax.jit
def _compare(
    logits: Float[Array, "T V"], wanted: Float[Array, "T V"], targets: Int[Array, "T"]
) -> tuple[Float[Array, "T"], Float[Array, "T"], Float[Array, "T"], Bool[Array, "T"]]:
    """-log p of the targets by both, KL(wanted || logits), and whether both like the same token best."""
    p, q = jax.nn.log_softmax(wanted, axis=1), jax.nn.log_softmax(logits, axis=1)
    # The sum of p log p / q loses digits; of p (log p / q - 1) + q, which is the same, every term is positive.
    kl = (jnp.exp(p) * (p - q - 1) + jnp.exp(q)).sum(axis=1)
    same = logits.argmax(axis=1) == wanted.argmax(axis=1)
    return _costs(logits, targets), _costs(wanted, targets), jnp.maximum(kl, 0), same
