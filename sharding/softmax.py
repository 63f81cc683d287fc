"""Attention over some of the keys, and how several such results make the one over all.

A softmax over a part of the keys is that over all of them, up to a factor that its log-sum-exp tells (Milakov and
Gimelshein, Online normalizer calculation for softmax, 2018).
"""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..backends.base import AttentionSpec
from .layout import Axes

_NOTHING = -1e30
"""The log-sum-exp of no keys: finite, so that differences of two of them are."""


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Partial:
    """What queries have seen so far: weighted values, and the log-sum-exp of their scores; fp32."""

    out: Float[Array, "T N H"]
    lse: Float[Array, "T N"]

    @classmethod
    def of_kernel(cls, out: Float[Array, "T N H"], lse: Float[Array, "T N"]) -> "Partial":
        """From a kernel, whose log-sum-exp is -inf where there are no keys."""
        return cls(out.astype(jnp.float32), jnp.maximum(lse, _NOTHING))

    @classmethod
    def nothing(cls, shape: tuple[int, ...]) -> "Partial":
        """No key seen by queries [T N H]."""
        return cls(jnp.zeros(shape, jnp.float32), jnp.full(shape[:-1], _NOTHING, jnp.float32))

    def merge(self, other: "Partial") -> "Partial":
        """Over the keys of both."""
        top = jnp.maximum(self.lse, other.lse)
        mine, theirs = jnp.exp(self.lse - top), jnp.exp(other.lse - top)
        total = mine + theirs
        out = self.out * (mine / total)[..., None] + other.out * (theirs / total)[..., None]
        return Partial(out, top + jnp.log(total))

    def merged(self, axes: Axes) -> "Partial":
        """Over the keys of all devices along some axes, which have the same queries."""
        top = jax.lax.pmax(self.lse, axes)
        weight = jnp.exp(self.lse - top)[..., None]
        both = jax.lax.psum(jnp.concatenate([self.out * weight, weight], axis=-1), axes)
        return Partial(both[..., :-1] / both[..., -1:], top + jnp.log(both[..., -1]))

    def finish(self, sinks: Float[Array, "N"] | None) -> Float[Array, "T N H"]:
        """The output, once all keys have been seen; `sinks` are logits that carry no value."""
        if sinks is None:
            return self.out
        return self.out * jax.nn.sigmoid(self.lse - sinks.astype(jnp.float32))[..., None]


def attend(
    q: Float[Array, "T N H"],
    keys: Float[Array, "S K H"],
    values: Float[Array, "S K H"],
    visible: Bool[Array, "T S"],
    spec: AttentionSpec,
) -> Partial:
    """Attention to the visible keys; what is not may hold anything."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    queries = q.reshape(num_tokens, num_kv_heads, -1, head_dim)
    scores = jnp.einsum(
        "TKGH,SKH->KGTS", queries, keys.astype(q.dtype), precision="highest", preferred_element_type=jnp.float32
    )
    scores *= spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
    scores = jnp.where(visible, scores, -jnp.inf)
    top = jnp.maximum(scores.max(axis=-1), _NOTHING)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    seen = visible.any(axis=0)[:, None, None]
    summed = jnp.einsum(
        "KGTS,SKH->TKGH", weights.astype(q.dtype), jnp.where(seen, values, 0).astype(q.dtype),
        precision="highest", preferred_element_type=jnp.float32,
    )  # fmt: skip
    total, top = (jnp.moveaxis(x, -1, 0).reshape(num_tokens, num_heads) for x in (total, top))
    out = summed.reshape(q.shape) / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
    return Partial(out, jnp.where(total > 0, top + jnp.log(jnp.maximum(total, jnp.finfo(jnp.float32).tiny)), _NOTHING))
