"""How a layout reaches the decoder: the collectives that it calls for by logical axis, inside shard_map.

Explicit collectives give the same program for every shape. Leaving them to XLA's partitioner gathers weights, or cuts
matmuls into loops of permutes, where its heuristics like that better.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..backends.base import PyTree
from ..backends.quantized import is_quantized
from ..models.config import ModelConfig
from ..models.placement import Apply, Held, State
from .arrange import kv_copies
from .experts import capacity_of, dispatch
from .layout import GATHERED, LOGICAL_AXES, Axes, Layout, Rules
from .pipeline import run_stages
from .stages import Stages


@dataclass(frozen=True)
class MeshPlacement:
    """One device's view of a step: everything that is split has the shape of its part.

    Args:
        rules: the mesh axes that split each logical axis in this step.
        sizes: of the mesh's axes.
        vocab_size: without padding.
        copies: how often a KV head is held along the axes that split them.
        capacity: of Layout.
        gathered: the mesh axes along which weights that a logical axis splits are gathered in this step.
        replicas: the axis of replicas that step together, each with tokens of its own.
    """

    rules: Rules
    sizes: tuple[tuple[str, int], ...]
    vocab_size: int
    copies: int = 1
    capacity: float | None = None
    gathered: Rules = Rules()
    replicas: Axes = ()

    @classmethod
    def of(cls, layout: Layout, config: ModelConfig, *, num_tokens: int, decode: bool) -> "MeshPlacement":
        """The placement of one step. Where tokens do not split evenly they stay whole, and a prompt's step is split
        as a decode step is."""
        prefill = not decode and num_tokens >= layout.prefill_from
        stored = {logical: layout.axes(logical) for logical in LOGICAL_AXES}
        table = {logical: layout.axes(logical, prefill=prefill) for logical in LOGICAL_AXES}
        if num_tokens % layout.size(table["tokens"]):
            table = stored | {"tokens": (), "routed": ()}
        gathered = {
            logical: tuple(axis for axis in stored[logical] if axis not in table[logical]) for logical in GATHERED
        }
        gathered = {logical: axes for logical, axes in gathered.items() if axes}
        copies = kv_copies(config.layers[0].attention.num_kv_heads, layout)
        rules = Rules.of(**table)
        replicas = ("data",) if layout.in_step else ()
        return cls(rules, layout.mesh, config.vocab_size, copies, layout.capacity, Rules.of(**gathered), replicas)

    @property
    def attended(self) -> Axes:
        """The axes along which the tokens that attention starts from are split."""
        return tuple(axis for axis in self.rules["tokens"] if axis not in self.rules["heads"])

    @property
    def exchanged(self) -> Axes:
        """The axes that split the heads of the KV cache and not those of the projections."""
        axes = [axis for axis in self.rules["cache_heads"] if axis not in self.rules["kv_heads"]]
        return tuple(axis for axis, _ in self.sizes if axis in axes)

    def constrain(self, x: Array, *logical: str | None) -> Array:
        """Keeps this device's tokens, where the residual stream begins and of what attention knows of each; everything
        else lies right already."""
        if logical[0] == "attended":
            return self._own(x, self.attended)
        return self._own(x, self.rules["tokens"]) if logical[0] == "tokens" else x

    def reduce(self, x: Array, logical: str, *, scatter: bool = False) -> Array:
        # Attention's output contracts heads and head_dim: the first of them has scattered it.
        scattered = self.scattered(logical) if scatter and logical != "head_dim" else ()
        x = self._sum(x, self.rules[logical], scattered)
        # Each KV head counts once.
        return x / self.copies if logical == "kv_heads" and self.copies > 1 else x

    def scattered(self, logical: str) -> Axes:
        """The axes along which a branch has gathered its tokens: the residual stream keeps parts of what it made."""
        branch = ("heads",) if logical == "heads" else ("mlp", "expert")
        along = {axis for each in branch for axis in self.rules[each]}
        return tuple(axis for axis in (*self.replicas, *self.rules["tokens"]) if axis in along)

    def _sum(self, x: Array, axes: Axes, tokens: Axes) -> Array:
        """The sum along `axes` of which this device keeps its part along `tokens`, the slowest first."""
        for summed, group in groupby(tokens, axes.__contains__):
            along = tuple(group)
            scatter = partial(jax.lax.psum_scatter, scatter_dimension=0, tiled=True) if summed else self._own
            x = scatter(x, along)
        rest = tuple(axis for axis in axes if axis not in tokens)
        return jax.lax.psum(x, rest) if rest else x

    def gather(self, x: Array, logical: str, axis: int) -> Array:
        axes = self.rules[logical]
        if logical in ("attended", "fed", "routed"):
            axes = () if logical == "routed" and axes else self.scattered("heads" if logical == "attended" else "mlp")
        if axes:
            x = jax.lax.all_gather(x, axes, axis=axis, tiled=True)
        if logical == "vocab" and x.shape[axis] > self.vocab_size:
            x = jax.lax.slice_in_dim(x, 0, self.vocab_size, axis=axis)
        return x

    def weights(self, layers: State) -> State:
        """Each weight that lies along fewer axes in this step, whole along the others. Numbers of heads alone, the
        sinks, stay where attention is computed."""
        if not self.gathered.table:
            return layers

        def whole(variable: Any) -> Any:
            logical, value = variable.get_metadata("logical")[1:], variable.get_value()
            if logical == ("heads",):
                return variable
            if not is_quantized(value):
                return variable.replace(gathered(value, logical))
            # What products sum over has one scale, on each device.
            outer = logical[: len(logical) - variable.get_metadata("contracted")]
            parts: dict[str, Any] = {
                name: gathered(part, logical if name == "values" else outer) for name, part in value.parts.items()
            }
            if value.out is not None:
                parts["out"] = tuple(
                    size * self._size(self.gathered[each]) for size, each in zip(value.out, outer, strict=True)
                )
            return variable.replace(replace(value, **parts))

        def gathered(x: Any, logical: tuple[str, ...]) -> Array:
            for axis, each in enumerate(logical):
                if self.gathered[each]:
                    x = jax.lax.all_gather(jnp.asarray(x), self.gathered[each], axis=axis, tiled=True)
            return x

        return jax.tree.map(whole, layers, is_leaf=lambda node: isinstance(node, nnx.Variable))

    def offset(self, logical: str, size: int) -> Int[Array, ""] | int:
        axes = self.rules[logical]
        return jax.lax.axis_index(axes) * size if axes else 0

    def parts(self, logical: str) -> int:
        axes = self.rules[logical]
        if logical in ("tokens", "replicas"):
            axes = (*self.replicas, *axes)
        return self._size(axes)

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
            axes = tuple(axis for axis, _ in self.sizes if axis in both)
            return self._sum(y, axes, self.scattered("expert")), 0
        num_tokens, top_k = experts.shape
        parts = self._size(axes)
        place = self.offset("routed", num_tokens) + jnp.arange(num_tokens)
        y, late = dispatch(
            apply, x, experts, weights, jnp.ones_like(place, bool) if rows is None else place < rows,
            axes=axes, parts=parts, held=held,
            capacity=capacity_of(num_tokens, top_k, held * parts, parts, self.capacity),
        )  # fmt: skip
        return self._sum(y, self.rules["mlp"], ()), late

    @property
    def beside_experts(self) -> "MeshPlacement":
        return replace(self, rules=self.rules.updated(tokens=(), routed=())) if self.rules["routed"] else self

    def held(self, config: ModelConfig, segment: int) -> Held:
        axes = self.rules["layers"]
        if not axes:
            return Held(config.segments[segment].repeats, config.cache_sites[segment])
        return Stages(config, self._size(axes)).held(segment, jax.lax.axis_index(axes))

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
