"""A decoder as data: what each layer is made of. Families translate checkpoints' own configurations into this."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..backends.base import CacheGroup
from .rope import RopeConfig

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "swigluoai"]
_MAX_BLOCK = 32  # longer than any published pattern; bounds the search for repeating blocks

NormPlacement = Literal["pre", "post", "sandwich", "residual"]
"""Around a branch f: pre x + f(norm x); post x + norm f(x); sandwich x + norm f(norm x); residual norm(x + f(x))."""


@dataclass(frozen=True)
class NormConfig:
    """RMSNorm or LayerNorm; the stored scale has `offset` added to it (1 in Gemma)."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    offset: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention of one layer; `rope` None leaves positions out (NoPE)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    qk_norm: Literal["head", "full"] | None = None
    """`head` normalises each head alone (Qwen3), `full` the whole projection (OLMo 2)."""
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True)
class MlpConfig:
    """A feed-forward layer of width `dim`: gated (SwiGLU, GeGLU) or plain. `limit` clamps swigluoai."""

    dim: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float = math.inf


@dataclass(frozen=True)
class MoeConfig:
    """A mixture of experts: `expert` is the shape of each, `top_k` of them run per token.

    `router` says how logits become weights: softmax over all and then the best (`softmax`), the best and then softmax
    over those (`topk_softmax`), or a sigmoid each (`sigmoid`). `normalise` makes the chosen weights sum to one.
    `correction_bias` is added for the choice alone. `scale` multiplies the weights. `shared` is an expert that every
    token runs, behind a sigmoid gate of its own with `shared_gate`.
    """

    num_experts: int
    top_k: int
    expert: MlpConfig
    router: Literal["softmax", "topk_softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    router_bias: bool = False
    correction_bias: bool = False
    scale: float = 1.0
    shared: MlpConfig | None = None
    shared_gate: bool = False


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer. `parallel` runs attention and feed-forward on the same normalised input (PaLM)."""

    attention: AttentionConfig
    mlp: MlpConfig | MoeConfig
    norm: NormConfig
    placement: NormPlacement = "pre"
    parallel: bool = False


@dataclass(frozen=True)
class Segment:
    """A block of layers that repeats: the unit that is compiled once and scanned.

    `layer_ids[j]` are the model's layers at position j of the block, one for each repeat.
    """

    block: tuple[LayerConfig, ...]
    repeats: int
    first: int

    @property
    def layer_ids(self) -> tuple[tuple[int, ...], ...]:
        step = len(self.block)
        return tuple(tuple(self.first + j + step * i for i in range(self.repeats)) for j in range(step))


@dataclass(frozen=True)
class CacheSite:
    """Where the layers at one position of a block keep their keys: layer `first + repeat * stride` of a group."""

    group: int
    first: int
    stride: int


@dataclass(frozen=True)
class ModelConfig:
    """A decoder language model.

    `max_positions` is the context length in tokens. `embed_scale` multiplies embeddings, `residual_scale` every
    branch before it is added, `logit_scale` the logits, before `logit_soft_cap`. `embed_in_dim` is the width of the
    embedding table where it differs from the model's (OPT-350m). `learned_positions` is the offset of position 0 in
    a table of learned positions, None where there is none.
    """

    family: str
    vocab_size: int
    embed_dim: int
    max_positions: int
    layers: tuple[LayerConfig, ...]
    final_norm: NormConfig | None
    tied: bool
    embed_scale: float = 1.0
    embed_in_dim: int | None = None
    learned_positions: int | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The layers as repeating blocks, cut so that the fewest distinct layers have to be compiled."""
        return _repeating_blocks(self.layers)

    @cached_property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """One group for each kind of layer, in order of first appearance."""
        kinds: dict[tuple[int, int, int | None], list[AttentionConfig]] = {}
        for layer in self.layers:
            kinds.setdefault(_cache_kind(layer), []).append(layer.attention)
        return tuple(
            CacheGroup(len(own), *kind, queries_per_kv_head=max(a.num_heads // a.num_kv_heads for a in own))
            for kind, own in kinds.items()
        )

    @cached_property
    def cache_sites(self) -> tuple[tuple[CacheSite, ...], ...]:
        """For each segment and position of its block, where its layers lie in the cache."""
        kinds = list(dict.fromkeys(_cache_kind(layer) for layer in self.layers))
        filled = [0] * len(kinds)

        def sites(segment: Segment) -> Iterator[CacheSite]:
            groups = [kinds.index(_cache_kind(layer)) for layer in segment.block]
            for j, group in enumerate(groups):
                yield CacheSite(group, filled[group] + groups[:j].count(group), groups.count(group))
            for group in set(groups):
                filled[group] += groups.count(group) * segment.repeats

        return tuple(tuple(sites(segment)) for segment in self.segments)


def _cache_kind(layer: LayerConfig) -> tuple[int, int, int | None]:
    return layer.attention.num_kv_heads, layer.attention.head_dim, layer.attention.window


def _repeating_blocks(layers: tuple[LayerConfig, ...]) -> tuple[Segment, ...]:
    # cost[i]: fewest block positions that cover layers[i:]; among equals, fewest segments.
    best: list[tuple[int, int, tuple[int, int] | None]] = [(0, 0, None)] * (len(layers) + 1)
    for i in reversed(range(len(layers))):
        options: list[tuple[int, int, tuple[int, int]]] = []
        for period in range(1, min(len(layers) - i, _MAX_BLOCK) + 1):
            block, repeats = layers[i : i + period], 1
            while layers[i + period * repeats : i + period * (repeats + 1)] == block:
                repeats += 1
            rest = best[i + period * repeats]
            options.append((period + rest[0], 1 + rest[1], (period, repeats)))
        best[i] = min(options, key=lambda option: option[:2])
    segments: list[Segment] = []
    i = 0
    while (cut := best[i][2]) is not None:
        period, repeats = cut
        segments.append(Segment(layers[i : i + period], repeats, i))
        i += period * repeats
    return tuple(segments)
