"""How a layout reaches the decoder: the collectives that it calls for by logical axis, inside shard_map.

Explicit collectives give the same program for every shape. Leaving them to XLA's partitioner gathers weights, or cuts
matmuls into loops of permutes, where its heuristics like that better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jaxtyping import Array, Int

from ..backends.base import PyTree
from ..models.config import ModelConfig
from ..models.placement import State
from .arrange import kv_copies
from .layout import Axes, Layout, Rules
from .pipeline import run_stages


@dataclass(frozen=True)
class MeshPlacement:
    """One device's view of a step: everything that is split has the shape of its part.

    Args:
        rules: the mesh axes that split each logical axis in this step.
        sizes: of the mesh's axes.
        vocab_size: without padding.
        copies: how often a KV head is held along the axes that split them.
    """

    rules: Rules
    sizes: tuple[tuple[str, int], ...]
    vocab_size: int
    copies: int = 1

    @classmethod
    def of(cls, layout: Layout, config: ModelConfig, *, num_tokens: int, decode: bool) -> "MeshPlacement":
        """The placement of one step. Tokens that do not split evenly stay whole."""
        table = {logical: layout.axes(logical, prefill=not decode) for logical, _ in layout.rules.table}
        tokens = layout.axes("tokens", prefill=not decode)
        if num_tokens % layout.size(tokens):
            tokens = ()
        copies = kv_copies(config.layers[0].attention.num_kv_heads, layout)
        return cls(Rules.of(**{**table, "tokens": tokens}), layout.mesh, config.vocab_size, copies)

    def constrain(self, x: Array, *logical: str | None) -> Array:
        """Keeps this device's tokens where the residual stream begins; everything else lies right already."""
        return self._own(x, self.rules["tokens"]) if logical[0] == "tokens" else x

    def reduce(self, x: Array, logical: str, *, scatter: bool = False) -> Array:
        axes = self.rules[logical]
        # Attention's output contracts heads and head_dim: the first of them has scattered it.
        tokens = self.rules["tokens"] if scatter and logical != "head_dim" else ()
        both = tuple(axis for axis in tokens if axis in axes)
        rest = tuple(axis for axis in axes if axis not in both)
        if both and both == tokens:
            x = jax.lax.psum_scatter(x, both, scatter_dimension=0, tiled=True)
        elif tokens:
            x = self._own(jax.lax.psum(x, both) if both else x, tokens)
        if rest:
            x = jax.lax.psum(x, rest)
        # Each KV head counts once.
        return x / self.copies if logical == "kv_heads" and self.copies > 1 else x

    def gather(self, x: Array, logical: str, axis: int) -> Array:
        axes = self.rules[logical]
        if axes:
            x = jax.lax.all_gather(x, axes, axis=axis, tiled=True)
        if logical == "vocab" and x.shape[axis] > self.vocab_size:
            x = jax.lax.slice_in_dim(x, 0, self.vocab_size, axis=axis)
        return x

    def offset(self, logical: str, size: int) -> Int[Array, ""] | int:
        axes = self.rules[logical]
        return jax.lax.axis_index(axes) * size if axes else 0

    def parts(self, logical: str) -> int:
        return self._size(self.rules[logical])

    def run_layers(self, run: Callable[[State, PyTree], State], state: State, batch: PyTree) -> State:
        axes = self.rules["layers"]
        if not axes:
            return run(state, batch)
        held: Any = state
        return run_stages(run, held, batch, axis=axes[0], stages=self._size(axes))  # pyright: ignore[reportReturnType]

    def _own(self, x: Array, axes: Axes) -> Array:
        """This device's part of the first dimension."""
        if not axes:
            return x
        size = x.shape[0] // self._size(axes)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)

    def _size(self, axes: Axes) -> int:
        return prod(dict(self.sizes)[axis] for axis in axes)
