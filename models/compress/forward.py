"""A model as one differentiable function of its weights: whole texts at once, several in a row, without a cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...backends.base import AttentionSpec, Carry, PyTree, RaggedIndex
from ...backends.reference import ReferenceBackend
from ..decoder import Weights, bind
from ..kv_cache import RaggedBatch
from ..layers import Machine
from ..placement import OneDevice
from .layers import LayerRuns


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Read:
    """What a model makes of B rows of S tokens.

    Attributes:
        hidden: the residual stream in front of the first layer and behind each of them; behind the last one that was
            asked for nothing follows.
        last: hidden states behind the last norm.
        logits: fp32.
    """

    hidden: Float[Array, "L_and_1 B S D"]
    last: Float[Array, "B S D"]
    logits: Float[Array, "B S V"]


def read(
    config: LayerRuns,
    weights: Weights,
    tokens: Int[Array, "B S"],
    documents: Int[Array, "B S"],
    *,
    remember: bool = True,
) -> Read:
    """Runs a model over rows of packed texts.

    Args:
        weights: of `config`, floating point.
        tokens: of texts one behind the other; none goes on in the next row.
        documents: the number of the text that each token is of. Tokens see those of their own text alone, and positions
            begin with each text. Padding is a text of its own.
        remember: keep what derivatives take; otherwise each layer is computed once more where they are taken.
    """
    backend = Rows(documents=documents, remember=remember)
    groups = len(config.cache_groups)
    cache = (jnp.zeros(()),) * groups  # nothing is kept
    machine = Machine(backend, OneDevice())
    decoder = bind(config, weights)
    last, _ = decoder(Packed.of(tokens, documents, groups), cache, machine)
    shape = tokens.shape
    return Read(
        jnp.concatenate(backend.seen).reshape(-1, *shape, config.embed_dim),
        last.reshape(*shape, -1),
        decoder.logits(last, machine).reshape(*shape, -1),
    )


@no_type_check  # JAX rebuilds it around tracers, as the batch that it is one of
@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Packed(RaggedBatch):
    """A batch whose positions are known, rather than found from where rows begin."""

    places: Int[Array, "T"]

    @classmethod
    def of(cls, tokens: Int[Array, "B S"], documents: Int[Array, "B S"], groups: int) -> "Packed":
        zero = jnp.zeros(1, jnp.int32)
        here = jnp.arange(tokens.shape[1])
        begins = jnp.pad(documents[:, 1:] != documents[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        places = here - jax.lax.cummax(jnp.where(begins, here, 0), axis=1)
        return cls(
            tokens=tokens.reshape(-1),
            query_starts=zero,
            kv_lens=zero,
            page_tables=(zero[None],) * groups,
            logit_indices=zero[None],
            places=places.reshape(-1),
        )

    def positions(self) -> Int[Array, "T"]:
        return self.places


@dataclass(frozen=True)
class Rows(ReferenceBackend):
    """Attention within rows, and a loop that remembers what goes from layer to layer."""

    documents: Int[Array, "B S"] | None = None
    remember: bool = True
    seen: list[Float[Array, "L T D"]] = field(default_factory=list, compare=False, repr=False)

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        apply = body if self.remember else jax.checkpoint(body)

        def step(carry: tuple[Carry, Int[Array, ""]], layer: PyTree) -> tuple[tuple[Carry, Int[Array, ""]], PyTree]:
            state = apply(carry[0], layer, carry[1])
            return (state, carry[1] + 1), _stream(state)

        if not self.seen:
            self.seen.append(_stream(carry)[None])
        (state, _), behind = jax.lax.scan(step, (carry, jnp.int32(0)), stacked, length=length)
        self.seen.append(behind)
        return state

    def ragged_attention(
        self,
        q: Float[Array, "T N H"],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        spec: AttentionSpec,
        sinks: Float[Array, "N"] | None = None,
    ) -> tuple[Float[Array, "T N H"], PyTree]:
        assert self.documents is not None
        rows, size = self.documents.shape
        (_, heads, width), kv_heads = q.shape, k.shape[1]
        queries = q.reshape(rows, size, kv_heads, heads // kv_heads, width)
        keys, values = (x.reshape(rows, size, kv_heads, width) for x in (k, v))
        scores = jnp.einsum("BQKGH,BSKH->BKGQS", queries, keys, preferred_element_type=jnp.float32) * spec.scale
        if spec.soft_cap is not None:
            scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
        back = jnp.arange(size)[:, None] - jnp.arange(size)
        visible = (back >= 0) & (back < (spec.window or size))
        visible = visible & (self.documents[:, :, None] == self.documents[:, None, :])
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        if sinks is not None:
            sink = sinks.astype(jnp.float32).reshape(kv_heads, -1, 1, 1)
            scores = jnp.concatenate([scores, jnp.broadcast_to(sink, (*scores.shape[:-1], 1))], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1)[..., :size].astype(q.dtype)
        out = jnp.einsum("BKGQS,BSKH->BQKGH", weights, values, preferred_element_type=jnp.float32)
        return out.reshape(q.shape).astype(q.dtype), cache


def _stream(state: PyTree) -> Float[Array, "T D"]:
    """The residual stream of a decoder's state."""
    return state[0]
