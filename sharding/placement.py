"""How a layout reaches the decoder: the collectives that it calls for by logical axis, inside shard_map.

Explicit collectives give the same program for every shape. Leaving them to XLA's partitioner gathers weights, or cuts
matmuls into loops of permutes, where its heuristics like that better.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..backends.base import PyTree
from ..models.config import ModelConfig
from ..models.placement import Apply, State
from .arrange import kv_copies
from .experts import capacity_of, dispatch
from .layout import LOGICAL_AXES, Axes, Layout, Rules
from .pipeline import run_stages


@dataclass(frozen=True)
class MeshPlacement:
    """One device's view of a step: everything that is split has the shape of its part.

    Args:
        rules: the mesh axes that split each logical axis in this step.
        sizes: of the mesh's axes.
        vocab_size: without padding.
        copies: how often a KV head is held along the axes that split them.
        capacity: of Layout.
    """

    rules: Rules
    sizes: tuple[tuple[str, int], ...]
    vocab_size: int
    copies: int = 1
    capacity: float | None = None

    @classmethod
    def of(cls, layout: Layout, config: ModelConfig, *, num_tokens: int, decode: bool) -> "MeshPlacement":
        """The placement of one step. Tokens that do not split evenly stay whole."""
        table = {logical: layout.axes(logical, prefill=not decode) for logical in LOGICAL_AXES}
        if num_tokens % layout.size(table["tokens"]):
            table |= {"tokens": (), "routed": ()}
        copies = kv_copies(config.layers[0].attention.num_kv_heads, layout)
        return cls(Rules.of(**table), layout.mesh, config.vocab_size, copies, layout.capacity)

    def constrain(self, x: Array, *logical: str | None) -> Array:
        """Keeps this device's tokens where the residual stream begins; everything else lies right already."""
        return self._own(x, self.rules["tokens"]) if logical[0] == "tokens" else x

    def reduce(self, x: Array, logical: str, *, scatter: bool = False) -> Array:
        # Attention's output contracts heads and head_dim: the first of them has scattered it.
        x = self._sum(x, self.rules[logical], scatter=scatter and logical != "head_dim")
        # Each KV head counts once.
        return x / self.copies if logical == "kv_heads" and self.copies > 1 else x

    def _sum(self, x: Array, axes: Axes, *, scatter: bool) -> Array:
        tokens = self.rules["tokens"] if scatter else ()
        both = tuple(axis for axis in tokens if axis in axes)
        rest = tuple(axis for axis in axes if axis not in both)
        if both and both == tokens:
            x = jax.lax.psum_scatter(x, both, scatter_dimension=0, tiled=True)
        elif tokens:
            x = self._own(jax.lax.psum(x, both) if both else x, tokens)
        return jax.lax.psum(x, rest) if rest else x

    def gather(self, x: Array, logical: str, axis: int) -> Array:
        if logical == "routed":
            logical = "" if self.rules["routed"] else "tokens"
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

    def dispatch(
        self,
        apply: Apply,
        x: Float[Array, "T D"],
        experts: Int[Array, "T A"],
        weights: Float[Array, "T A"],
        *,
        held: int,
        rows: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "T_own D"], Int[Array, ""] | int]:
        """To the devices of the experts where tokens are routed; otherwise each device has all tokens, and the parts of
        experts and widths are added up at once."""
        axes = self.rules["routed"]
        if not axes:
            y = apply(x, experts - self.offset("expert", held), weights)
            both = (*self.rules["expert"], *self.rules["mlp"])
            return self._sum(y, tuple(axis for axis, _ in self.sizes if axis in both), scatter=True), 0
        num_tokens, top_k = experts.shape
        parts = self._size(axes)
        place = self.offset("routed", num_tokens) + jnp.arange(num_tokens)
        y, late = dispatch(
            apply, x, experts, weights, jnp.ones_like(place, bool) if rows is None else place < rows,
            axes=axes, parts=parts, held=held,
            capacity=capacity_of(num_tokens, top_k, held * parts, parts, self.capacity),
        )  # fmt: skip
        return self._sum(y, self.rules["mlp"], scatter=False), late

    @property
    def beside_experts(self) -> "MeshPlacement":
        return replace(self, rules=self.rules.updated(tokens=(), routed=())) if self.rules["routed"] else self

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
