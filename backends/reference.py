"""The backend in plain jax.numpy: the oracle for every kernel, and the fallback on any device that XLA knows.

It favours clarity: attention gathers all pages of a row and pads queries to a rectangle.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from . import ragged_attention
from .base import AttentionSpec, Backend, CacheGroup, Capabilities, Carry, MemoryInfo, Program, PyTree, RaggedIndex
from .errors import UnsupportedError
from .host_memory import host_memory
from .quantized import is_quantized, quantized_grouped, quantized_linear, quantized_rows, round_tokens
from .rotation import rotate
from .rounded_tokens import RoundedTokens
from .shared_pages import ReferencePages, SharedPages
from .token_places import TokenPlaces
from .token_scales import LARGEST, TokenScaled, rounded

_MIN_BUCKET = 16
_MAX_SCORES = 2**24  # fp32 scores that attention holds at once, over all rows and heads


@dataclass(frozen=True)
class ReferenceBackend:
    """Pure jax.numpy on the default device."""

    name: str = "reference"
    page_size: int = 16
    capabilities: Capabilities = Capabilities(
        dtypes=("float32", "bfloat16", "float16"),
        kv_dtypes=("float32", "bfloat16", "float16", *LARGEST),
        custom_masks=True,
    )

    @property
    def kernels(self) -> Mapping[str, str]:
        operations = ("ragged_attention", "dense_attention", "linear", "grouped_linear", "embed")
        return dict.fromkeys(operations, "jax.numpy")

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        return {}

    def check(
        self,
        groups: Sequence[CacheGroup],
        *,
        dtype: DTypeLike,
        kv_dtype: DTypeLike,
        page_size: int,
        table_entries: int = 0,
    ) -> None:
        for field, given, supported in (
            ("dtype", jnp.dtype(dtype).name, self.capabilities.dtypes),
            ("kv dtype", jnp.dtype(kv_dtype).name, self.capabilities.kv_dtypes),
        ):
            if given not in supported:
                raise UnsupportedError(f"backend {self.name}: {field} {given}, supported are {', '.join(supported)}")
        if page_size < 1:
            raise UnsupportedError(f"backend {self.name}: page size {page_size}, expected at least 1")

    def prepare_params(self, params: PyTree) -> PyTree:
        return params

    def with_rows(self, count: Int[Array, ""]) -> Backend:
        return self

    def linear(
        self,
        x: Float[Array, "T *in"] | RoundedTokens,
        weight: PyTree,
        equation: str,
        *,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "T *out"]:
        num_out = len(equation.split("->")[1]) - 1
        if is_quantized(weight):
            rows = x if isinstance(x, RoundedTokens) else x.reshape(x.shape[0], -1)
            return quantized_linear(rows, weight, weight.ndim - num_out, out_dtype or x.dtype, self._round)
        assert not isinstance(x, RoundedTokens)  # which stands for weights that are rounded too
        # Both sides as matrices: given three axes, XLA:CPU transposes the whole weight before it multiplies.
        out = weight.shape[:num_out]
        product = jax.lax.dot_general(
            x.reshape(x.shape[0], -1),
            weight.reshape(math.prod(out), -1),
            (((1,), (1,)), ((), ())),
            precision="highest",
            preferred_element_type=jnp.float32,
        )
        return product.reshape(-1, *out).astype(out_dtype or x.dtype)

    def linears(
        self, x: Float[Array, "T *in"] | RoundedTokens, weights: Sequence[PyTree], equations: Sequence[str]
    ) -> tuple[Float[Array, "T *out"], ...]:
        return tuple(self.linear(x, *each) for each in zip(weights, equations, strict=True))

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        if is_quantized(weight):
            return quantized_grouped(x, weight, group_sizes)
        dimensions = jax.lax.RaggedDotDimensionNumbers(
            dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=(0,)
        )
        product = jax.lax.ragged_dot_general(
            x, weight, group_sizes, dimensions, precision="highest", preferred_element_type=jnp.float32
        )
        return product.astype(x.dtype)

    def silu_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"]) -> Float[Array, "T F"]:
        return jax.nn.silu(gate) * up

    def rms_norm(
        self, x: Float[Array, "*T D"], scale: Float[Array, "*D"], *, offset: float, epsilon: float
    ) -> Float[Array, "*T D"]:
        y = x.astype(jnp.float32)
        total = jnp.square(y).sum(tuple(range(-scale.ndim, 0)), keepdims=True)
        # Not rsqrt: XLA:CPU approximates that in vectors only, so that its bits depend on the number of tokens.
        y *= jnp.sqrt(1 / (total / scale.size + epsilon))
        return (y * (scale.astype(jnp.float32) + offset)).astype(x.dtype)

    def rotate(
        self, q: Float[Array, "T N H"], k: Float[Array, "T K H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]
    ) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"]]:
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def _round(self, x: Float[Array, "T K"], kind: str) -> RoundedTokens:
        """Tokens for products with weights that round them to a type."""
        return round_tokens(x, kind)

    def rounded_norm(
        self,
        x: Float[Array, "T D"],
        scale: Float[Array, "D"],
        weights: Sequence[PyTree],
        *,
        offset: float,
        epsilon: float,
    ) -> RoundedTokens | None:
        return None

    def rounded_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"], weight: PyTree) -> RoundedTokens | None:
        return None

    def embed(self, table: PyTree, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
        return quantized_rows(table, ids) if is_quantized(table) else table[ids]

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        # Counting costs less than reading the number of each layer from an array of them.
        def step(carry: tuple[Carry, Int[Array, ""]], layer: PyTree) -> tuple[tuple[Carry, Int[Array, ""]], None]:
            state, number = carry
            return (body(state, layer, number), number + 1), None

        return jax.lax.scan(step, (carry, jnp.int32(0)), stacked, length=length)[0][0]

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
        return ragged_attention.bind(reference_ragged_attention, q, k, v, cache, layer, index, spec, sinks)

    def dense_attention(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        spec: AttentionSpec,
        sinks: Float[Array, "N"] | None = None,
        *,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B T N H"]:
        """As rows of a page each."""
        rows, size, _, head_dim = q.shape
        lengths = jnp.full(rows, size) if lengths is None else lengths
        group = CacheGroup(num_layers=1, num_kv_heads=k.shape[2], head_dim=head_dim)
        cache = ReferenceBackend.allocate_cache(self, group, num_pages=rows, page_size=size, dtype=k.dtype)
        index = RaggedIndex(
            page_table=jnp.arange(rows, dtype=jnp.int32)[:, None],
            query_starts=size * jnp.arange(rows + 1, dtype=jnp.int32),
            kv_lens=jnp.full(rows, size, jnp.int32),
            max_query_len=size,
        )
        flat = [x.reshape(rows * size, *x.shape[2:]) for x in (q, k, v)]
        out, _ = reference_ragged_attention(flat[0], flat[1], flat[2], cache, jnp.int32(0), index, spec, sinks)
        own = jnp.arange(size) < lengths[:, None]
        return jnp.where(own[..., None, None], out.reshape(q.shape), 0)

    def shared_pages(self) -> SharedPages | None:
        return ReferencePages()

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """[L, P, page, 2, K, H]; of 8-bit numbers as TokenScaled."""
        shape = (group.num_layers, num_pages, page_size, 2, group.num_kv_heads, group.head_dim)
        pages = jnp.zeros(shape, dtype)
        return TokenScaled.of(pages, page_size) if jnp.dtype(dtype).name in LARGEST else pages

    def compile(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree], donate: Sequence[int] = ()
    ) -> Program:
        lowered = jax.jit(step, donate_argnums=tuple(donate)).lower(*abstract_args)
        return lowered.compile(dict(self.compiler_options))

    def put(self, tree: PyTree, sharding: Sharding | None = None) -> PyTree:
        return jax.device_put(tree, sharding)

    def get(self, tree: PyTree) -> PyTree:
        return jax.device_get(tree)

    def memory(self) -> MemoryInfo:
        stats = jax.local_devices()[0].memory_stats()
        if stats and "bytes_limit" in stats:
            return MemoryInfo(total=stats["bytes_limit"], free=stats["bytes_limit"] - stats.get("bytes_in_use", 0))
        return host_memory()

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        sizes = [_MIN_BUCKET]
        while sizes[-1] < max_tokens:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)


def reference_ragged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    cache: PyTree,
    layer: Int[Array, ""],
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
) -> tuple[Float[Array, "T N H"], PyTree]:
    """Attention over paged keys and values, as Backend.ragged_attention describes, with fp32 scores.

    The cache is [L, P, page, 2, K, H], or a TokenScaled of such.
    """
    num_tokens, num_heads, _ = q.shape
    pages = _pages_of(cache)
    num_pages, page_size = pages.shape[1:3]
    num_rows = index.kv_lens.shape[0]
    groups = num_heads // k.shape[1]

    tokens = TokenPlaces.of(num_tokens, index)
    page = jnp.where(tokens.padding, num_pages, index.page_table[tokens.row, tokens.position // page_size])
    if isinstance(cache, TokenScaled):
        *divided, cache = cache.with_new(k, v, pages.dtype, layer, index)
        new = rounded(jnp.stack(divided, axis=1), pages.dtype)
    else:
        new = jnp.stack([k, v], axis=1).astype(pages.dtype)
    pages = pages.at[layer, page, tokens.position % page_size].set(new, mode="drop")
    cache = TokenScaled(pages, cache.scales) if isinstance(cache, TokenScaled) else pages

    # Queries padded to a rectangle, keys gathered from a row's pages; as many rows at once as scores leave room for.
    max_query_len = min(index.max_query_len or num_tokens, num_tokens)
    key_position = jnp.arange(index.page_table.shape[1] * page_size)

    def attend(row: Row) -> Float[Array, "Q K G H"]:
        scores, values = row_scores(q, cache, layer, row, key_position, max_query_len, spec, index.mask)
        top = jnp.maximum(scores.max(axis=-1), jnp.finfo(jnp.float32).min)
        sink = None if sinks is None else sinks.astype(jnp.float32).reshape(-1, groups)[..., None]
        if sink is not None:
            top = jnp.maximum(top, sink)
        weights = jnp.exp(scores - top[..., None])
        total = weights.sum(axis=-1)
        if sink is not None:
            total += jnp.exp(sink - top)
        weights /= jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
        return jnp.einsum(
            "KGQS,SKH->QKGH", weights.astype(q.dtype), values, precision="highest", preferred_element_type=jnp.float32
        )

    at_once = _MAX_SCORES // (num_heads * max_query_len * key_position.shape[0])
    out = jax.lax.map(attend, rows_of(index), batch_size=min(max(at_once, 1), num_rows))
    out = out[tokens.row, jnp.minimum(tokens.offset, max_query_len - 1)].reshape(q.shape)
    return jnp.where(tokens.padding[:, None, None], 0, out).astype(q.dtype), cache


type Row = tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, "pages"]]
"""First token, queries, positions and pages of a row."""


def rows_of(index: RaggedIndex) -> tuple[Array, Array, Array, Array]:
    """Every row, for `jax.lax.map`."""
    return index.query_starts[:-1], jnp.diff(index.query_starts), index.kv_lens, index.page_table


def row_scores(
    q: Float[Array, "T N H"],
    cache: PyTree,
    layer: Int[Array, ""],
    row: Row,
    key_position: Int[Array, "S"],
    max_query_len: int,
    spec: AttentionSpec,
    mask: Bool[Array, "T queries"] | None = None,
) -> tuple[Float[Array, "K G Q S"], Float[Array, "S K H"]]:
    """Scores of a row's queries, padded to a rectangle, with the keys in its pages, in fp32, -inf where a key is not
    seen; and the values. `key_position` tells the position of each key, `mask` is RaggedIndex's."""
    start, query_len, kv_len, pages = row
    num_tokens, num_heads, head_dim = q.shape
    slot = jnp.arange(max_query_len)
    groups = num_heads // _pages_of(cache).shape[4]
    token = jnp.minimum(start + slot, num_tokens - 1)
    queries = q[token].reshape(max_query_len, -1, groups, head_dim)
    gathered = _pages_of(cache)[layer, pages]
    if isinstance(cache, TokenScaled):
        scales = jnp.swapaxes(cache.scales[layer, pages], 1, 2)  # pages, positions, of keys and values
        gathered = gathered.astype(jnp.float32) * scales[..., None, None]
    gathered = gathered.astype(q.dtype)
    keys, values = jnp.moveaxis(gathered.reshape(-1, *gathered.shape[2:]), 1, 0)
    query_position = (kv_len - query_len + slot)[:, None]
    written = key_position < kv_len
    if mask is None:
        visible = written & (key_position <= query_position)
    else:
        new = key_position - (kv_len - query_len)  # which of the row's new tokens
        seen = mask[token][:, jnp.clip(new, 0, mask.shape[1] - 1)] & (new < mask.shape[1])
        visible = written & ((new < 0) | seen)
    if spec.window is not None:
        visible &= key_position > query_position - spec.window

    scores = jnp.einsum("QKGH,SKH->KGQS", queries, keys, precision="highest", preferred_element_type=jnp.float32)
    scores *= spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
    # Positions never written may hold anything, NaN included, and 0 * NaN is NaN.
    return jnp.where(visible, scores, -jnp.inf), jnp.where(written[:, None, None], values, 0)


def _pages_of(cache: PyTree) -> Num[Array, "L P page 2 K H"]:
    return cache.numbers if isinstance(cache, TokenScaled) else cache
