"""The backend of CPUs: reads packed weights in place, by kernels that are made for the processor at run time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from ..base import AttentionSpec, Backend, CacheGroup, Capabilities, Carry, PyTree, RaggedIndex
from ..errors import UnsupportedError
from ..reference import ReferenceBackend
from ..rounded_tokens import RoundedTokens
from ..shared_pages import SharedPages
from . import matmul
from .attention import KV_DTYPES, allocate_cpu_cache, check_cpu_attention, cpu_ragged_attention
from .gate import silu_gate
from .jit import check_jit, processor
from .large_pages import gathered
from .norm import rms_norm
from .packing import PackedMatrix, is_packed
from .packing_tree import pack_tree
from .products import grouped, kind_of, linear
from .rotate import rotate
from .tile import SHORT

_DECODE_BUCKETS = (1, 8, 16, 32, 64)
_MAX_BUCKETS = 8
_COMPILER_OPTIONS = {
    # The exponentials of a gated feed-forward take two thirds of the time in vectors of 512 bits.
    "xla_cpu_prefer_vector_width": 512,
    # No reduction goes to YNNPACK: XLA sends it those of many rows only, and it adds in another order.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # bf16 is rounded where the decoder says. XLA leaves roundings out where it fuses, which depends on the shape.
    "xla_allow_excess_precision": False,
}


@dataclass(frozen=True)
class CpuBackend(ReferenceBackend):
    """Weights in panels, matmuls as custom calls. What it has no kernel for, it leaves to XLA like the reference."""

    name: str = "cpu"
    page_size: int = 16
    count: Int[Array, ""] | None = field(default=None, compare=False, repr=False)  # rows that matter, while tracing
    capabilities: Capabilities = Capabilities(
        dtypes=("float32", "bfloat16"),
        kv_dtypes=KV_DTYPES,
        matmul_dtypes=("float32", "bfloat16"),
        batch_invariant=True,
        packed_weights=True,
    )

    def __post_init__(self) -> None:
        """Makes the kernels, once for a process.

        Raises:
            UnsupportedError: JAX runs elsewhere, or no machine code can be made here.
        """
        if jax.default_backend() != "cpu":
            raise UnsupportedError(f"JAX's default backend is {jax.default_backend()}, not cpu")
        check_jit()

    @property
    def kernels(self) -> Mapping[str, str]:
        made = f"LLVM for {processor()}"
        return {
            "ragged_attention": f"{made}: flash attention over pages",
            "dense_attention": "jax.numpy",
            "linear": f"{made}: packed panels",
            "grouped_linear": f"{made}: packed panels",
            "silu_gate": f"{made}: of bfloat16, else XLA",
            "rms_norm": made,
            "rotate": made,
            "embed": "XLA, out of packed panels",
        }

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        return _COMPILER_OPTIONS

    def check(
        self,
        groups: Sequence[CacheGroup],
        *,
        dtype: DTypeLike,
        kv_dtype: DTypeLike,
        page_size: int,
        table_entries: int = 0,
    ) -> None:
        check_cpu_attention(dtype=dtype, kv_dtype=kv_dtype, page_size=page_size)
        matmul.targets(SHORT[jnp.dtype(dtype).name])

    def prepare_params(self, params: PyTree) -> PyTree:
        return gathered(pack_tree(params, self.capabilities.dtypes))

    def with_rows(self, count: Int[Array, ""]) -> Backend:
        return replace(self, count=count)

    def linear(
        self,
        x: Float[Array, "T *in"] | RoundedTokens,
        weight: PyTree,
        equation: str,
        *,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "T *out"]:
        dtype = jnp.dtype(out_dtype or x.dtype)
        if isinstance(x, RoundedTokens) or not is_packed(weight) or dtype.name not in SHORT:
            return super().linear(x, weight, equation, out_dtype=out_dtype)
        return self._linears(x, [weight], dtype)[0]

    def linears(
        self, x: Float[Array, "T *in"] | RoundedTokens, weights: Sequence[PyTree], equations: Sequence[str]
    ) -> tuple[Float[Array, "T *out"], ...]:
        """One call, so that threads come together once for all."""
        alike = all(is_packed(weight) and kind_of(weight) == kind_of(weights[0]) for weight in weights)
        if isinstance(x, RoundedTokens) or not alike or x.dtype.name not in SHORT:
            return super().linears(x, weights, equations)
        return self._linears(x, weights, x.dtype)

    def _linears(
        self, x: Float[Array, "T *in"], weights: Sequence[PackedMatrix], dtype: DTypeLike
    ) -> tuple[Float[Array, "T *out"], ...]:
        count = jnp.int32(x.shape[0]) if self.count is None else self.count
        products = linear(x.reshape(x.shape[0], -1), weights, dtype, count)
        return tuple(y.reshape(-1, *weight.out) for y, weight in zip(products, weights, strict=True))

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        if not is_packed(weight):
            return super().grouped_linear(x, weight, group_sizes)
        return grouped(x, weight, x.dtype, group_sizes)

    def silu_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"]) -> Float[Array, "T F"]:
        return silu_gate(gate, up) if gate.dtype == jnp.bfloat16 else super().silu_gate(gate, up)

    def rms_norm(
        self, x: Float[Array, "*T D"], scale: Float[Array, "*D"], *, offset: float, epsilon: float
    ) -> Float[Array, "*T D"]:
        if x.dtype.name not in SHORT or scale.dtype.name not in SHORT:
            return super().rms_norm(x, scale, offset=offset, epsilon=epsilon)
        return rms_norm(x.reshape(-1, scale.size), scale.reshape(-1), offset=offset, epsilon=epsilon).reshape(x.shape)

    def rotate(
        self, q: Float[Array, "T N H"], k: Float[Array, "T K H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]
    ) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"]]:
        return rotate(q, k, cos, sin) if q.dtype.name in SHORT else super().rotate(q, k, cos, sin)

    def embed(self, table: PyTree, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
        return table.rows(ids) if is_packed(table) else super().embed(table, ids)

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
        return cpu_ragged_attention(q, k, v, cache, layer, index.without_mask(self.name), spec, sinks)

    def shared_pages(self) -> SharedPages | None:
        return None  # its kernels read packed pages whole

    def allocate_cache(
        self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> Num[Array, "L P K elements"]:
        return allocate_cpu_cache(group, num_pages=num_pages, page_size=page_size, dtype=dtype)

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        """A scan around which packed weights stay whole: XLA:CPU copies what a scan slices."""
        leaves, structure = jax.tree.flatten(stacked, is_leaf=is_packed)
        scanned = [None if is_packed(leaf) else leaf for leaf in leaves]

        def one_layer(carry: Carry, small: list[Array | None], index: Int[Array, ""]) -> Carry:
            views = [leaf.layer(index) if is_packed(leaf) else part for leaf, part in zip(leaves, small, strict=True)]
            return body(carry, jax.tree.unflatten(structure, views), index)

        return super().layer_loop(one_layer, carry, scanned, length)

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        """Fine steps where decoding is (a step of 1 row takes 0.8 times as long as one of 8), coarser ones above."""
        small = [size for size in _DECODE_BUCKETS if size < max_tokens]
        for growth in (2, 4, 8, 16, 32):
            large = [_DECODE_BUCKETS[-1] * growth]
            while large[-1] < max_tokens:
                large.append(large[-1] * growth)
            if len(small) + len(large) <= _MAX_BUCKETS:
                break
        return (*small, *large[:-1], max_tokens) if len(small) == len(_DECODE_BUCKETS) else (*small, max_tokens)
