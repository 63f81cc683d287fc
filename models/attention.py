"""Grouped-query attention of one layer (arXiv 2305.13245)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from ..backends.base import AttentionSpec, PyTree, RaggedIndex
from ..backends.rounded_tokens import RoundedTokens
from .config import AttentionConfig, NormConfig
from .layers import Einsum, Machine, Norm, ParamFactory
from .rope import RopeConfig


@dataclass(frozen=True)
class Positions:
    """What a step's layers share: each cache group's index, and the rotation for each RoPE in the model."""

    indices: tuple[RaggedIndex, ...]
    rotations: Mapping[RopeConfig, tuple[Float[Array, "T R"], Float[Array, "T R"]]]


class Attention(nnx.Module):
    """Projects to queries, keys and values, rotates, attends over the paged cache, projects back."""

    def __init__(self, config: AttentionConfig, norm: NormConfig, new: ParamFactory) -> None:
        self.config = config
        new = new.sized(N=config.num_heads, K=config.num_kv_heads, H=config.head_dim)
        self.q = Einsum("TD,NHD->TNH", new, bias=config.qkv_bias)
        self.k = Einsum("TD,KHD->TKH", new, bias=config.qkv_bias)
        self.v = Einsum("TD,KHD->TKH", new, bias=config.qkv_bias)
        self.o = Einsum("TNH,DNH->TD", new, bias=config.out_bias, residual=True)
        full = config.qk_norm == "full"
        self.q_norm = Norm(norm, "NH" if full else "H", new) if config.qk_norm else None
        self.k_norm = Norm(norm, "KH" if full else "H", new) if config.qk_norm else None
        self.sinks = new("N", nnx.initializers.zeros) if config.sinks else None

    @property
    def inputs(self) -> list[Einsum]:
        """What x is multiplied with."""
        return [self.q, self.k, self.v]

    def __call__(
        self,
        x: Float[Array, "T D"] | RoundedTokens,
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        positions: Positions,
        machine: Machine,
    ) -> tuple[Float[Array, "T_own D"], PyTree]:
        config = self.config
        with jax.named_scope("qkv"):
            q, k, v = Einsum.each(self.inputs, x, machine)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q, machine), self.k_norm(k, machine)
            if config.rope is not None:
                cos, sin = positions.rotations[config.rope]
                q, k = machine.backend.rotate(q, k, cos, sin)
        with jax.named_scope("attention"):
            spec = AttentionSpec(config.scale, config.window, config.soft_cap)
            sinks = None if self.sinks is None else self.sinks.get_value()
            out, cache = machine.backend.ragged_attention(q, k, v, cache, layer, index, spec, sinks)
        with jax.named_scope("out"):
            return self.o(out, machine), cache
