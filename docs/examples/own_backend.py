"""A backend of one's own, as docs/backends.md explains: attention that walks over pages, in a cache of another order.

What a chip does as everybody does comes from the reference; here attention is its own, and with it the cache's memory.
tests/backends/test_contract.py asks of it what it asks of every backend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from distaff.backends import ragged_attention
from distaff.backends.base import AttentionSpec, CacheGroup, Capabilities, PyTree, RaggedIndex
from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend
from distaff.backends.shared_pages import SharedPages
from distaff.backends.token_places import TokenPlaces

_WIDEST = 256


@dataclass(frozen=True)
class OwnBackend(ReferenceBackend):
    """Frozen and hashable, since it is static to `jit`: a program is kept for each backend that asks for it."""

    name: str = "own"
    page_size: int = 16
    # What it can be asked for. `check` refuses the rest when a model is loaded, and not at its first request.
    capabilities: Capabilities = Capabilities(dtypes=("float32", "bfloat16"), kv_dtypes=("float32", "bfloat16"))

    @property
    def kernels(self) -> Mapping[str, str]:
        """What `distaff backends` shows."""
        return {**super().kernels, "ragged_attention": "a walk over pages"}

    def check(
        self,
        groups: Sequence[CacheGroup],
        *,
        dtype: DTypeLike,
        kv_dtype: DTypeLike,
        page_size: int,
        table_entries: int = 0,
    ) -> None:
        super().check(groups, dtype=dtype, kv_dtype=kv_dtype, page_size=page_size, table_entries=table_entries)
        for group in groups:
            if group.head_dim > _WIDEST:
                raise UnsupportedError(
                    f"backend {self.name}: heads of {group.head_dim}, supported are those up to {_WIDEST}"
                )

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """[L, P, K, 2, page, H]: a page's positions of one head lie together. Layers and pages have to come first,
        since pages are copied by number; the rest is the backend's own."""
        return jnp.zeros((group.num_layers, num_pages, group.num_kv_heads, 2, page_size, group.head_dim), dtype)

    def ragged_attention(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: PyTree, layer: jax.Array, index: RaggedIndex,
        spec: AttentionSpec, sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:  # fmt: skip
        """One primitive of the jaxpr, so that whoever reads the program finds attention as a whole."""
        return ragged_attention.bind(walk, q, k, v, cache, layer, index.without_mask(self.name), spec, sinks)

    def shared_pages(self) -> SharedPages | None:
        """None: no layout splits the positions of a page over devices."""
        return None


def walk(
    q: jax.Array, k: jax.Array, v: jax.Array, cache: jax.Array, layer: jax.Array, index: RaggedIndex,
    spec: AttentionSpec, sinks: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Writes k and v [T, K, H], then attends page by page with a running maximum and sum (arXiv 2112.05682)."""
    num_tokens, num_kv_heads, head_dim = k.shape
    num_pages, page_size = cache.shape[1], cache.shape[4]
    token = TokenPlaces.of(num_tokens, index)
    # Padding is written behind the last page, which is nowhere.
    page = jnp.where(token.padding, num_pages, index.page_table[token.row, token.position // page_size])
    new = jnp.stack((k, v), axis=2).astype(cache.dtype)
    cache = cache.at[layer, page, :, :, token.position % page_size].set(new, mode="drop")

    queries = q.reshape(num_tokens, num_kv_heads, -1, head_dim).astype(jnp.float32) * spec.scale
    top = jnp.full(queries.shape[:3], jnp.finfo(jnp.float32).min)
    total = jnp.zeros_like(top)
    if sinks is not None:  # takes part in the softmax and carries no value
        top = top.at[...].set(sinks.astype(jnp.float32).reshape(num_kv_heads, -1))
        total += 1

    def step(number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        top, total, out = state
        position = number * page_size + jnp.arange(page_size)
        seen = position <= token.position[:, None]
        if spec.window is not None:
            seen &= position > token.position[:, None] - spec.window
        held = cache[layer, index.page_table[token.row, number]].astype(jnp.float32)  # [T, K, 2, page, H]
        # Positions that were never written may hold anything, and 0 * NaN is NaN.
        held = jnp.where(seen[:, None, None, :, None], held, 0)
        scores = jnp.einsum("TKGH,TKSH->TKGS", queries, held[:, :, 0], precision="highest")
        if spec.soft_cap is not None:
            scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        best = jnp.maximum(top, scores.max(axis=-1))
        weights, old = jnp.exp(scores - best[..., None]), jnp.exp(top - best)
        more = jnp.einsum("TKGS,TKSH->TKGH", weights, held[:, :, 1], precision="highest")
        return best, total * old + weights.sum(axis=-1), out * old[..., None] + more

    longest = -(-index.kv_lens.max() // page_size)
    _, total, out = jax.lax.fori_loop(0, longest, step, (top, total, jnp.zeros_like(queries)))
    out = out / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
    return jnp.where(token.padding[:, None, None], 0, out.reshape(q.shape)).astype(q.dtype), cache


if __name__ == "__main__":
    from distaff.backends.select import CANDIDATES
    from distaff.serving import LLM, SamplingParams

    CANDIDATES["own"] = OwnBackend  # a backend of the repository stands in backends/select.py itself
    llm = LLM("smollm2-135m-instruct", backend="own", max_batch=2, context=256)
    params = SamplingParams(temperature=0, max_tokens=8)
    for completion in llm.generate(["The capital of France is", "The capital of Italy is"], params):
        print(repr(completion.text))
    llm.close()
