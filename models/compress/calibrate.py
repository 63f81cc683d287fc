"""What goes into each matrix of a model while it reads a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ...backends.base import Carry, PyTree
from ...backends.reference import ReferenceBackend
from ..config import ModelConfig
from ..decoder import Weights, bind
from ..kv_cache import RaggedBatch, allocate_cache
from ..layers import Machine
from ..placement import OneDevice

type Key = tuple[str, int]
"""A leaf's path, and the number of a matrix along its first axis (0 where none are stacked)."""


@dataclass
class Inputs:
    """Of one matrix [N, K]: sums over all tokens that it was multiplied with.

    Attributes:
        products: x^T x, [K, K].
        largest: of |x|, [K].
        tokens: how many.
    """

    products: Float[np.ndarray, "K K"]
    largest: Float[np.ndarray, "K"]
    tokens: int

    @classmethod
    def none(cls, width: int) -> "Inputs":
        return cls(np.zeros((width, width), np.float32), np.zeros(width, np.float32), 0)

    def add(self, x: Float[np.ndarray, "T K"]) -> None:
        self.products += x.T @ x
        np.maximum(self.largest, np.abs(x).max(axis=0, initial=0), out=self.largest)
        self.tokens += len(x)


@dataclass(frozen=True)
class _Tagged:
    """A weight that tells which it is."""

    value: Array
    key: Key

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


@dataclass(frozen=True)
class _Watching(ReferenceBackend):
    """Runs a model outside of jit, a layer behind the other, and looks at what is multiplied."""

    count: int = 0
    seen: dict[Key, Inputs] = field(default_factory=dict, compare=False, repr=False)
    segments: list[int] = field(default_factory=list, compare=False, repr=False)

    def linear(
        self, x: Float[Array, "T *in"], weight: PyTree, equation: str, *, out_dtype: DTypeLike | None = None
    ) -> Float[Array, "T *out"]:
        if not isinstance(weight, _Tagged):
            return super().linear(x, weight, equation, out_dtype=out_dtype)
        rows = np.asarray(x, np.float32)[: self.count].reshape(self.count, -1)
        self.seen.setdefault(weight.key, Inputs.none(rows.shape[1])).add(rows)
        return super().linear(x, weight.value, equation, out_dtype=out_dtype)

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        segment = len(self.segments)
        self.segments.append(length)
        leaves, structure = jax.tree_util.tree_flatten_with_path(stacked)
        for number in range(length):
            tagged = [self._tag(segment, path, leaf[number], number) for path, leaf in leaves]
            carry = body(carry, jax.tree.unflatten(structure, tagged), jnp.int32(number))
        return carry

    def _tag(self, segment: int, path: tuple[Any, ...], leaf: Array, number: int) -> Any:
        names = [str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path]
        names = [name for name in names if name not in ("value", "raw_value")]
        if names[-1] != "weight":
            return leaf
        return _Tagged(leaf, (f"segments.{segment}.layers.{'.'.join(names)}", number))


def calibrate(
    config: ModelConfig,
    weights: Weights,
    windows: Sequence[Sequence[int]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, Inputs]:
    """Inputs of every projection of every layer, experts left out, over some texts.

    Args:
        weights: in the checkpoint's form, in floating point.
        windows: token ids, each read from nothing.
        progress: called with windows read and their number.
    """
    seen: dict[Key, Inputs] = {}
    for done, window in enumerate(windows):
        size = len(window)
        backend = _Watching(count=size, seen=seen)
        pages = [-(-size // backend.page_size)] * len(config.cache_groups)
        cache = allocate_cache(config, backend, num_pages=pages, page_size=backend.page_size, dtype=jnp.float32)
        batch = RaggedBatch.single(window, 0, num_tokens=size, num_pages=pages[0], num_groups=len(pages))
        bind(config, weights)(batch, cache, Machine(backend, OneDevice()))
        progress(done + 1, len(windows))
    return seen
