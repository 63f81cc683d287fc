"""What the decoder and the runner ask of a chip.

Shapes use the letters of docs/architecture.md: B rows of a batch, T tokens of a step (padded to a bucket), S key
positions, D model width, F feed-forward width, N query heads, K key/value heads, G = N / K, H head width, L layers,
P pages, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, no_type_check, runtime_checkable

import jax
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from .errors import UnsupportedError
from .rounded_tokens import RoundedTokens

if TYPE_CHECKING:
    from .token_places import TokenPlaces

PyTree = Any
Carry = TypeVar("Carry")


@dataclass(frozen=True)
class CacheGroup:
    """The KV cache of all layers of one kind: they share a page table, a window and a row shape.

    `window` is the number of key positions that a query sees (its own included); None is full attention.
    `queries_per_kv_head` is N / K, the largest of its layers.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    queries_per_kv_head: int = 1


@dataclass(frozen=True)
class AttentionSpec:
    """The static part of one attention call.

    `scale` multiplies the scores; `soft_cap` c replaces a score s by c * tanh(s / c); `window` is as in CacheGroup.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RaggedIndex:
    """Where each row of a mixed batch has its queries and its cached keys, for one cache group.

    Row b owns the queries `query_starts[b] : query_starts[b + 1]` of the T tokens; they are the last ones of its
    `kv_lens[b]` positions. Position p of row b lives in page `page_table[b, p // page]` at offset `p % page`. Empty
    rows have kv_lens 0 and no queries; tokens from `query_starts[B]` on are padding. `max_query_len` bounds the
    queries of a row where the caller knows a bound (None: T).

    `mask` says which of its own row's new tokens each token sees, by their place among them, itself always included:
    trees of candidates, images whose patches see each other. None: those up to itself. New tokens beyond its columns
    are not seen, all old positions are, and a window holds in any case. Backends with `custom_masks` take one.

    `places` are those of the T tokens where the caller has found them, once for all layers.
    """

    page_table: Int[Array, "B pages"]
    query_starts: Int[Array, "B+1"]
    kv_lens: Int[Array, "B"]
    max_query_len: int | None = field(default=None, metadata={"static": True})
    mask: Bool[Array, "T queries"] | None = None
    places: "TokenPlaces | None" = None

    def without_mask(self, backend: str) -> "RaggedIndex":
        """This index, for a backend whose attention knows no masks of its callers.

        Raises:
            UnsupportedError: it has one.
        """
        if self.mask is not None:
            raise UnsupportedError(
                f"backend {backend}: a custom mask in RaggedIndex.mask, supported are causal attention and windows"
            )
        return self


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes of one device: `total`, and `free` at the time of asking; `shared` with the host's other programs."""

    total: int
    free: int
    shared: bool = False


@dataclass(frozen=True)
class Capabilities:
    """What a backend can be asked for. An empty tuple means any value.

    `matmul_dtypes` are the types that the chip multiplies at a rate of their own, the fastest last.
    `batch_invariant`: a token's numbers are the same bits in every bucket and beside any neighbours.
    `custom_masks`: ragged_attention takes a mask in its RaggedIndex.
    `packed_weights`: in their prepared form weights lie in an order of the backend's, so that parts of one, side by
    side along a logical axis, are not the whole.
    `rehearsals`: first calls in which the device still compiles or records, so that a warm-up makes them.
    """

    dtypes: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    head_dims: tuple[int, ...] = ()
    page_sizes: tuple[int, ...] = ()
    matmul_dtypes: tuple[str, ...] = ("float32",)
    batch_invariant: bool = False
    custom_masks: bool = False
    packed_weights: bool = False
    rehearsals: int = 0


@runtime_checkable
class Program(Protocol):
    """A compiled step: called with arrays of exactly the abstract arguments it was compiled for."""

    def __call__(self, *args: PyTree) -> PyTree: ...

    def as_text(self) -> str | None: ...

    def memory_analysis(self) -> Any: ...


@runtime_checkable
class Backend(Protocol):
    """One chip's way to run a decoder. Implementations are frozen and hashable, so that they can be static to jit."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def page_size(self) -> int:
        """Default number of key positions in a page."""
        ...

    @property
    def kernels(self) -> Mapping[str, str]:
        """What each operation runs on, for people: operation -> kernel."""
        ...

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        """What XLA is told when it compiles for this chip."""
        ...

    def check(
        self,
        groups: Sequence[CacheGroup],
        *,
        dtype: DTypeLike,
        kv_dtype: DTypeLike,
        page_size: int,
        table_entries: int = 0,
    ) -> None:
        """Declines a model when it is built, not at its first request.

        Args:
            table_entries: rows of a batch times pages of the longest row.

        Raises:
            UnsupportedError: names the value that this chip has no kernel for, and what it supports.
        """
        ...

    def prepare_params(self, params: PyTree) -> PyTree:
        """Gives weights the form this chip likes: stacked, split, transposed or packed.

        The tree keeps its structure; a leaf may become any pytree that `linear`, `grouped_linear`, `embed` and
        `layer_loop` of the same backend understand.
        """
        ...

    def with_rows(self, count: Int[Array, ""]) -> "Backend":
        """This backend for matrices of which only the first `count` rows matter; what `linear` leaves in the others may
        be anything finite. A chip that cannot make use of that returns itself."""
        ...

    def linear(
        self,
        x: Float[Array, "T *in"] | RoundedTokens,
        weight: PyTree,
        equation: str,
        *,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "T *out"]:
        """`einsum(equation, x, weight)`, accumulated in fp32, in out_dtype (None: the dtype of x).

        Weights are [out..., in...] in the order of the equation, whose first letter is the tokens: "TNH,DNH->TD". A
        weight whose products round x to fewer bits takes it rounded, too.
        """
        ...

    def linears(
        self, x: Float[Array, "T *in"] | RoundedTokens, weights: Sequence[PyTree], equations: Sequence[str]
    ) -> tuple[Float[Array, "T *out"], ...]:
        """`linear` of the same x with each of several weights, as queries, keys and values are."""
        ...

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        """Multiplies consecutive groups of rows by one matrix each; weight is [E, O, I]."""
        ...

    def silu_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"]) -> Float[Array, "T F"]:
        """silu(gate) * up, in their type."""
        ...

    def rms_norm(
        self, x: Float[Array, "*T D"], scale: Float[Array, "*D"], *, offset: float, epsilon: float
    ) -> Float[Array, "*T D"]:
        """`x * sqrt(1 / (mean(x ** 2) + epsilon)) * (scale + offset)` over as many last axes as the scale has, in fp32
        and rounded once (arXiv 1910.07467)."""
        ...

    def rotate(
        self, q: Float[Array, "T N H"], k: Float[Array, "T K H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]
    ) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"]]:
        """The first 2 R entries of each head turned, entry i with entry i + R, in fp32 and rounded once."""
        ...

    def rounded_norm(
        self,
        x: Float[Array, "T D"],
        scale: Float[Array, "D"],
        weights: Sequence[PyTree],
        *,
        offset: float,
        epsilon: float,
    ) -> RoundedTokens | None:
        """rms_norm, rounded for `linear` with each of these weights; None: they round the norm themselves, or do
        not."""
        ...

    def rounded_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"], weight: PyTree) -> RoundedTokens | None:
        """silu(gate) * up, rounded for `linear` with this weight; None as in rounded_norm."""
        ...

    def embed(self, table: PyTree, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
        """Rows of a [V, D] table."""
        ...

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        """Runs `carry = body(carry, layer i of stacked, i)` for i in range(length): scanned or unrolled."""
        ...

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
        """Writes k and v into layer `layer` of the group's cache, then attends causally over each row's pages.

        Returns the attention output (zeros at padding) and the cache. `sinks` are per-head logits that take part
        in the softmax and carry no value.

        Raises:
            UnsupportedError: the index has a mask, and this backend's `capabilities` no custom masks.
        """
        ...

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
        """Causal attention without a cache: of each row to its own first `lengths[b]` tokens (None: all T).

        Zeros at the other tokens. `spec` and `sinks` are as for ragged_attention.
        """
        ...

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """An empty cache `[L, P, page, ...]` for all layers of a group."""
        ...

    def compile(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree], donate: Sequence[int] = ()
    ) -> Program:
        """Compiles `step` for arguments of exactly these shapes; the arguments numbered in `donate` are consumed."""
        ...

    def put(self, tree: PyTree, sharding: Sharding | None = None) -> PyTree:
        """Copies host arrays to the device."""
        ...

    def get(self, tree: PyTree) -> PyTree:
        """Copies device arrays to the host, waiting for them."""
        ...

    def memory(self) -> MemoryInfo: ...

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        """Padded token counts to compile for, ascending; the last one is at least max_tokens."""
        ...
