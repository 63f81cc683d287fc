"""How far one model is from another on a text: perplexity, divergence, agreement."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ..backends.base import Backend, PyTree
from ..backends.errors import DistaffError, InvalidParameterError
from ..models.config import ModelConfig
from ..models.decoder import Weights, bind
from ..models.kv_cache import KVCache, RaggedBatch, allocate_cache
from ..models.layers import Machine
from ..models.placement import OneDevice

MIN_TOKENS = 64
"""A text of fewer tokens says nothing."""


class QualityError(DistaffError):
    """A model is further from its reference than was allowed."""


@dataclass(frozen=True)
class Quality:
    """What a text tells of a model, and of its distance from a reference.

    Attributes:
        tokens: that were predicted.
        perplexity: exp of the mean of -log p of the text's own tokens.
        reference_perplexity: of the reference.
        mean_kl, p99_kl, max_kl: KL(reference || model) in nats over the places of the text.
        top1_agreement: share of places where both find the same token the most likely.
        greedy_divergence: where both write on greedily from the same text, how many tokens they write alike before the
            first that differs, on average; `greedy_tokens` is as many as were compared.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    mean_kl: float | None = None
    p99_kl: float | None = None
    max_kl: float | None = None
    top1_agreement: float | None = None
    greedy_divergence: float | None = None
    greedy_tokens: int | None = None

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
            weights: PyTree, cache: KVCache, tokens: Int[Array, "T"], start: Int[Array, ""], count: Int[Array, ""]
        ) -> tuple[Float[Array, "T V"], KVCache]:
            starts = jnp.stack([jnp.int32(0), count])
            batch = RaggedBatch(tokens, starts, (start + count)[None], tables, jnp.zeros((1, 1), jnp.int32))
            decoder = bind(config, weights)
            hidden, cache = decoder(batch, cache, machine)
            return decoder.logits(hidden, machine), cache

        def empty() -> KVCache:
            num_pages = [pages] * len(config.cache_groups)
            return allocate_cache(config, backend, num_pages=num_pages, page_size=backend.page_size, dtype=kv_dtype)

        self.window = window
        self._cache = empty()
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (self._weights, self._cache))
        scalar = jax.ShapeDtypeStruct((), jnp.int32)

        def compiled(size: int) -> Callable[..., Any]:
            tokens = jax.ShapeDtypeStruct((size,), jnp.int32)
            return backend.compile(run, (*abstract, tokens, scalar, scalar), donate=(1,))

        self._compiled = lru_cache(compiled)
        self._compiled(window)

    def __call__(self, tokens: Sequence[int]) -> Float[Array, "T V"]:
        """fp32 scores behind each token, and behind padding up to the window."""
        return self._feed(tokens, 0, self.window)

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that the model writes behind a text, always the most likely one, within the window."""
        written = [int(self(tokens)[len(tokens) - 1].argmax())]
        while len(written) < count:
            logits = self._feed(written[-1:], len(tokens) + len(written) - 1, 1)
            written.append(int(logits[0].argmax()))
        return written

    def _feed(self, tokens: Sequence[int], start: int, size: int) -> Float[Array, "T V"]:
        padded = np.zeros(size, np.int32)
        padded[: len(tokens)] = tokens
        run = self._compiled(size)
        logits, self._cache = run(self._weights, self._cache, padded, np.int32(start), np.int32(len(tokens)))
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


def greedy_divergence(
    model: Scores, reference: Forward, ids: Sequence[int], *, bos: int | None = None, texts: int = 4, most: int = 32
) -> tuple[float, int]:
    """How many tokens two models write alike before the first that differs, on average, and as many as were compared.

    Up to there the model's own text is the reference's, so that it is asked once for all places of that.

    Args:
        ids: a text; windows of it are written on from their first halves.
        texts: how many of them, the first ones.
        most: tokens for each.
    """
    half, alike = model.window // 2, []
    count = min(most, model.window - half)
    for window in windows(ids, model.window, bos):
        start = min(len(window), half)
        written = reference.greedy(window[:start], count)
        found = np.asarray(model([*window[:start], *written[:-1]])[start - 1 : start + count - 1].argmax(axis=1))
        differs = np.flatnonzero(found != np.asarray(written))
        alike.append(int(differs[0]) if len(differs) else count)
        if len(alike) == texts:
            break
    return float(np.mean(alike)), count


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


def check_quality(quality: Quality, *, max_kl: float | None, max_ppl_increase: float | None) -> None:
    """Holds a model against its limits.

    Raises:
        QualityError: it is beyond one.
    """
    if max_kl is not None and quality.mean_kl is not None and not quality.mean_kl <= max_kl:
        raise QualityError(f"mean KL is {quality.mean_kl:.5f} nats, allowed are {max_kl}; change less, or allow more")
    if max_ppl_increase is not None and quality.reference_perplexity is not None:
        rise = quality.perplexity / quality.reference_perplexity - 1
        if not rise <= max_ppl_increase:
            raise QualityError(
                f"perplexity rises by {rise:.2%}, allowed are {max_ppl_increase:.2%}; change less, or allow more"
            )
