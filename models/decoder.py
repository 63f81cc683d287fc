"""One decoder for every family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from ..backends.base import PyTree
from ..backends.rounded_tokens import RoundedTokens
from . import rope
from .attention import Attention, Positions
from .config import CacheSite, LayerConfig, MlpConfig, ModelConfig, Segment
from .expert_load import count_load
from .kv_cache import KVCache, RaggedBatch
from .layers import Einsum, Embedding, Machine, Norm, ParamFactory
from .mlp import Mlp
from .moe import Moe
from .placement import Held

Weights = dict[str, PyTree]
"""Nested dict of arrays, addressed by dotted paths such as `segments.0.layers.1.attention.q.weight`."""

State = tuple[Float[Array, "T D"], KVCache]


@dataclass(frozen=True)
class WeightSpec:
    """One leaf of the weights.

    `key` is the path inside its layer; `axes` are logical names, "layers" first where layers are stacked; `layers`
    are the model's layers along that axis. `contracted` counts the last axes of a matrix, over which products sum.
    """

    path: str
    key: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    contracted: int = 0


class Layer(nnx.Module):
    """Attention and feed-forward around one residual stream, with norms where the family puts them."""

    def __init__(self, config: LayerConfig, residual_scale: float, new: ParamFactory) -> None:
        self.config = config
        self.residual_scale = residual_scale
        before = config.placement in ("pre", "sandwich")
        after = config.placement != "pre"
        mlp = Mlp if isinstance(config.mlp, MlpConfig) else Moe
        self.attention_norm = Norm(config.norm, "D", new) if before else None
        self.attention = Attention(config.attention, config.norm, new)
        self.attention_post_norm = Norm(config.norm, "D", new) if after else None
        self.mlp_norm = Norm(config.norm, "D", new) if before and not config.parallel else None
        self.mlp = mlp(config.mlp, new)  # pyright: ignore[reportArgumentType]
        self.mlp_post_norm = Norm(config.norm, "D", new) if after else None

    def __call__(
        self, state: State, site: CacheSite, repeat: Int[Array, ""], positions: Positions, machine: Machine
    ) -> State:
        x, cache = state
        written, load = cache[site.group], None

        def attend(y: Array | RoundedTokens) -> Array:
            nonlocal written
            layer = site.first + repeat * site.stride
            out, written = self.attention(y, written, layer, positions.indices[site.group], positions, machine)
            return out

        # A mixture sends its tokens where their experts are.
        mlp_tokens = "fed" if isinstance(self.mlp, Mlp) else "routed"

        def mlp(y: Array | RoundedTokens) -> Array:
            nonlocal load
            if isinstance(self.mlp, Mlp):
                return self.mlp(y, machine)
            assert not isinstance(y, RoundedTokens)  # the router looks at them too
            out, load = self.mlp(y, machine)
            return out

        if self.config.parallel:
            assert self.attention_norm is not None
            own = self.attention_norm(x, machine)
            y = machine.placement.gather(own, "attended", 0)
            # A layout gives both branches of such layers the same tokens.
            z = y if mlp_tokens == "fed" else machine.placement.gather(own, mlp_tokens, 0)
            x += self.residual_scale * (attend(y) + mlp(z))
        else:
            norms = self.attention_norm, self.attention_post_norm
            x = self._branch(x, attend, "attended", *norms, self.attention.inputs, machine)
            inputs = self.mlp.inputs if isinstance(self.mlp, Mlp) else []
            x = self._branch(x, mlp, mlp_tokens, self.mlp_norm, self.mlp_post_norm, inputs, machine)
        cache = (*cache[: site.group], written, *cache[site.group + 1 :])
        if load is not None:
            cache = count_load(cache, load, site, repeat)
        return x, cache

    def _branch(
        self,
        x: Array,
        branch: Callable[[Array | RoundedTokens], Array],
        tokens: str,
        before: Norm | None,
        after: Norm | None,
        inputs: Sequence[Einsum],
        machine: Machine,
    ) -> Array:
        """`inputs` are all that the branch does with what it is given; none: it does more with it."""
        y = x if before is None else before.for_products(x, inputs, machine)
        y = branch(jax.tree.map(lambda part: machine.placement.gather(part, tokens, 0), y))
        if self.config.placement == "residual":
            assert after is not None
            return after(x + self.residual_scale * y, machine)
        return x + self.residual_scale * (y if after is None else after(y, machine))


class Stack(nnx.Module):
    """A segment's layers: one module for each position of the block, weights stacked over repeats."""

    def __init__(self, segment: Segment, residual_scale: float, new: ParamFactory) -> None:
        new = ParamFactory(new.rngs, new.dtype, new.sizes, stack=segment.repeats)
        self.layers = nnx.List([Layer(layer, residual_scale, new) for layer in segment.block])

    def __call__(self, state: State, held: Held, positions: Positions, machine: Machine) -> State:
        graph, stacked = nnx.split(self.layers)

        def body(state: State, weights: PyTree, repeat: Int[Array, ""]) -> State:
            def run(state: State) -> State:
                whole = machine.placement.weights(weights)
                for layer, site in zip(nnx.merge(graph, whole), held.sites, strict=True):
                    state = layer(state, site, repeat, positions, machine)
                return state

            return run(state) if held.active is None else jax.lax.cond(held.active(repeat), run, lambda s: s, state)

        return machine.backend.layer_loop(body, state, stacked, held.repeats)


class Decoder(nnx.Module):
    """Embeds tokens, runs the layers, and scores the vocabulary."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        self.config = config
        sizes = {"D": config.embed_dim, "V": config.vocab_size, "I": config.embed_in_dim or config.embed_dim}
        new = ParamFactory(rngs, dtype, sizes)
        narrow = config.embed_in_dim is not None
        self.embedder = Embedding("VI" if narrow else "VD", new)
        self.project_in = Einsum("TI,DI->TD", new) if narrow else None
        self.project_out = Einsum("TD,ID->TI", new) if narrow else None
        offset = config.learned_positions
        self.positions = None if offset is None else Embedding("SD", new.sized(S=config.max_positions + offset))
        self.segments = nnx.List([Stack(segment, config.residual_scale, new) for segment in config.segments])
        self.final_norm = None if config.final_norm is None else Norm(config.final_norm, "D", new)
        self.unembedder = None if config.tied else Embedding("VI" if narrow else "VD", new)

    def __call__(self, batch: RaggedBatch, cache: KVCache, machine: Machine) -> tuple[Float[Array, "T D"], KVCache]:
        """Hidden states behind the last norm, and the cache with this step's keys and values in it."""
        config, x = self.config, self.embed(batch, machine)

        def run(state: State, batch: RaggedBatch) -> State:
            positions = shared_positions(config, batch, machine)
            for number, stack in enumerate(self.segments):
                state = stack(state, machine.placement.held(config, number), positions, machine)
            return state

        x, cache = machine.placement.run_layers(run, (x, cache), batch)
        if self.final_norm is not None:
            x = self.final_norm(x, machine)
        return machine.placement.gather(x, "tokens", 0), cache

    def embed(self, batch: RaggedBatch, machine: Machine) -> Float[Array, "T D"]:
        """What goes into the first layer."""
        config = self.config
        with jax.named_scope("embed"):
            x = self.embedder(batch.tokens, machine)
            x *= jnp.asarray(config.embed_scale, x.dtype)
            if self.project_in is not None:
                x = self.project_in(x, machine)
            if self.positions is not None and config.learned_positions is not None:
                x += self.positions(batch.positions() + config.learned_positions, machine)
            return machine.placement.constrain(x, "tokens", "embed")

    def logits(self, x: Float[Array, "R D"], machine: Machine) -> Float[Array, "R V"]:
        """fp32 scores of each row of hidden states."""
        with jax.named_scope("logits"):
            if self.project_out is not None:
                x = self.project_out(x, machine)
            logits = (self.unembedder or self.embedder).logits(x, machine) * self.config.logit_scale
            if self.config.logit_soft_cap is not None:
                logits = self.config.logit_soft_cap * jnp.tanh(logits / self.config.logit_soft_cap)
            return logits


def shared_positions(config: ModelConfig, batch: RaggedBatch, machine: Machine) -> Positions:
    """What all layers of a step share."""
    ropes = {layer.attention.rope for layer in config.layers} - {None}
    where = machine.placement.constrain(batch.positions(), "attended")
    return Positions(batch.indices(), {r: rope.rotation(r, where) for r in ropes if r is not None})


@lru_cache(maxsize=64)
def _abstract(config: ModelConfig, dtype: DTypeLike) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype))


def bind(config: ModelConfig, weights: Weights) -> Decoder:
    """The decoder with these weights in it; cheap enough to be done inside jit at each trace."""
    graph, state = nnx.split(_abstract(config, jnp.dtype(jnp.float32)))
    flat = flatten(weights)
    pure = nnx.to_flat_state(state)
    filled = [(path, variable.replace(flat[_dotted(path)])) for path, variable in pure]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def weight_specs(config: ModelConfig, dtype: DTypeLike) -> dict[str, WeightSpec]:
    """Every leaf of the weights by its dotted path, in the order in which the decoder uses them."""
    dtype = jnp.dtype(dtype)
    specs: dict[str, WeightSpec] = {}
    for path, variable in nnx.to_flat_state(nnx.split(_abstract(config, dtype))[1]):
        dotted = _dotted(path)
        key, layers = dotted, None
        if path[0] == "segments":
            key = _dotted(path[4:])
            _, segment, _, position, *_ = (str(part) for part in path)
            layers = config.segments[int(segment)].layer_ids[int(position)]
        value = variable.get_value()
        axes, contracted = variable.get_metadata("logical"), variable.get_metadata("contracted")
        specs[dotted] = WeightSpec(dotted, key, value.shape, dtype, axes, layers, contracted)
    return specs


def init_weights(
    config: ModelConfig, *, seed: int, dtype: DTypeLike, place: Callable[[WeightSpec], Sharding] | None = None
) -> Weights:
    """Random weights (normal, 0.02), made where `place` says that each lives."""
    shardings = None
    if place is not None:
        shardings = unflatten({path: place(spec) for path, spec in weight_specs(config, dtype).items()})

    def init(seed: UInt32[Array, ""]) -> Weights:
        # XLA's own generator: threefry takes several times as long to compile, once for each leaf.
        rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))
        decoder = Decoder(config, rngs=rngs, dtype=jnp.dtype(dtype))
        state = nnx.to_flat_state(nnx.split(decoder)[1])
        return unflatten({_dotted(path): variable.get_value() for path, variable in state})

    return jax.jit(init, out_shardings=shardings)(jnp.uint32(seed))


def flatten(weights: Weights) -> dict[str, PyTree]:
    """Dotted path -> leaf."""
    flat: dict[str, PyTree] = {}

    def walk(prefix: str, node: PyTree) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                walk(f"{prefix}.{name}" if prefix else name, child)
        else:
            flat[prefix] = node

    walk("", weights)
    return flat


def unflatten(flat: Mapping[str, PyTree]) -> Weights:
    """The inverse of `flatten`."""
    weights: Weights = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        node = weights
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return weights


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)
