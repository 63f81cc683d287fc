"""The backend of TPUs: attention in Pallas kernels over paged keys and values, everything else by XLA."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .. import ragged_attention
from ..base import AttentionSpec, CacheGroup, Capabilities, Carry, MemoryInfo, PyTree, RaggedIndex
from ..errors import UnsupportedError
from ..hardware import chip
from ..quantized import as_matrices, is_quantized, shared_rounding
from ..reference import ReferenceBackend
from ..rounded_tokens import RoundedTokens
from ..token_scales import LARGEST, TokenScaled
from .cache import KV_DTYPES, LANES, PAGE_SIZES, allocate_tpu_cache
from .compiler_options import compiler_options
from .decode import MAX_QUERIES, check_decode, decode_attention
from .expert_weights import ExpertLayer, with_whole_experts
from .flash import flash_attention
from .generations import attached_generation
from .grouped import grouped_matmul
from .prefill import check_prefill, prefill_attention
from .rounding import round_gate, round_norm, round_rows
from .shared_pages import TpuPages
from .small_weights import with_joined_numbers

_MIN_BUCKET = 16
_MAX_BUCKETS = 8
_ROWS_AT_ONCE = 64
_INTERPRETED = "v6e"


@dataclass(frozen=True)
class TpuBackend(ReferenceBackend):
    """Kernels for one generation of TPUs: the attached one, or a named one to be compiled for.

    Args:
        generation: v4, v5e, v5p, v6e or tpu7x; None is the attached TPU's.
        interpret: runs the kernels on any device, an operation after another: for tests.

    Raises:
        UnsupportedError: no generation is named and no TPU is attached.
    """

    name: str = "tpu"
    page_size: int = 128
    capabilities: Capabilities = Capabilities(
        dtypes=("float32", "bfloat16"),
        kv_dtypes=KV_DTYPES,
        page_sizes=PAGE_SIZES,
        custom_masks=True,
    )
    generation: str | None = None
    interpret: bool = False

    def __post_init__(self) -> None:
        named = self.generation or (_INTERPRETED if self.interpret else attached_generation())
        if chip(named).platform != "tpu":
            raise UnsupportedError(f"backend tpu: generation {named!r}, which is no TPU")
        object.__setattr__(self, "generation", chip(named).name)
        object.__setattr__(self, "capabilities", replace(self.capabilities, matmul_dtypes=tuple(chip(named).flops)))

    @property
    def target(self) -> str:
        """The generation that kernels are made for."""
        assert self.generation is not None
        return self.generation

    @property
    def kernels(self) -> Mapping[str, str]:
        how = f"Pallas for {self.target}{', interpreted' if self.interpret else ''}"
        return {
            "ragged_attention (decode)": f"{how}: decode_attention",
            "ragged_attention (prefill)": f"{how}: prefill_attention",
            "dense_attention": f"{how}: flash_attention",
            "linear": "XLA",
            "grouped_linear": f"{how}: grouped_matmul",
            "embed": "XLA",
        }

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        """Of compiler_options.yaml; none of them is known where kernels are interpreted."""
        return {} if self.interpret else compiler_options(self.target)

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
            shape: dict[str, Any] = dict(
                num_heads=group.num_kv_heads * group.queries_per_kv_head,
                num_kv_heads=group.num_kv_heads,
                head_dim=group.head_dim,
                page_size=page_size,
                kv_dtype=kv_dtype,
                generation=self.target,
                table_entries=table_entries,
            )
            check_decode(**shape)
            check_prefill(**shape, dtype=dtype)

    def prepare_params(self, params: PyTree) -> PyTree:
        """Output projections [L, D, N, H] become matrices [L, D, N * H], and so do rounded projections to heads.

        Heads and their widths are contracted as one axis, whose tiles are not those of two: XLA would write each
        layer's weight to memory once more before it multiplies; bytes also where heads are the output.
        """

        def flat(path: tuple[Any, ...], leaf: PyTree) -> PyTree:
            names = tuple(getattr(part, "key", None) for part in path)
            projected = names[-1:] == ("weight",) and names[-2:-1] in (("q",), ("k",), ("v",), ("o",))
            if is_quantized(leaf):
                stacked = int(names[0] == "segments")
                return as_matrices(leaf, stacked, 2 if names[-2] == "o" else 1) if projected else leaf
            return leaf.reshape(*leaf.shape[:-2], -1) if names[-2:] == ("o", "weight") else leaf

        return jax.tree_util.tree_map_with_path(flat, params, is_leaf=is_quantized)

    def _round(self, x: Float[Array, "T K"], kind: str) -> RoundedTokens:
        return self._by_kernel(round_rows, (x,), kind) or super()._round(x, kind)

    def rounded_norm(
        self,
        x: Float[Array, "T D"],
        scale: Float[Array, "D"],
        weights: Sequence[PyTree],
        *,
        offset: float,
        epsilon: float,
    ) -> RoundedTokens | None:
        factors = scale.astype(jnp.float32) + offset
        return self._by_kernel(partial(round_norm, epsilon=epsilon), (x, factors), shared_rounding(weights))

    def rounded_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"], weight: PyTree) -> RoundedTokens | None:
        return self._by_kernel(round_gate, (gate, up), shared_rounding([weight]))

    def _by_kernel(
        self, kernel: Callable[..., RoundedTokens], operands: tuple[Array, ...], kind: str | None
    ) -> RoundedTokens | None:
        """What a kernel rounds; None where nothing is to be, or too much for a kernel."""
        if kind is None:
            return None
        try:
            return kernel(*operands, dtype=kind, generation=self.target, interpret=self.interpret)
        except UnsupportedError:
            return None

    def embed(self, table: PyTree, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
        """A few rows at a time: XLA writes out the moves of every row that it gathers at once, and takes 16 to 26 s to
        compile 512 rows of 8,192; 64 at a time take 1.2 s, and no longer to run by its own estimate."""
        if is_quantized(table):
            return super().embed(table, ids)
        return (
            table[ids] if len(ids) <= _ROWS_AT_ONCE else jax.lax.map(lambda i: table[i], ids, batch_size=_ROWS_AT_ONCE)
        )

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        """By the kernel, or by XLA where rows are too wide for it; rows behind the last group come out arbitrary."""
        if is_quantized(weight):
            return super().grouped_linear(x, weight, group_sizes)
        stack, layer = (weight.stack, weight.layer) if isinstance(weight, ExpertLayer) else (weight[None], jnp.int32(0))
        try:
            return grouped_matmul(x, stack, layer, group_sizes, generation=self.target, interpret=self.interpret)
        except UnsupportedError:
            return super().grouped_linear(x, stack[layer], group_sizes)

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        loop = partial(with_joined_numbers, super().layer_loop)
        return with_whole_experts(loop, body, carry, stacked, length)

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
        return ragged_attention.bind(self._attend, q, k, v, cache, layer, index, spec, sinks)

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
        out = flash_attention(q, k, v, spec, sinks, generation=self.target, interpret=self.interpret)
        if lengths is None:
            return out
        return jnp.where((jnp.arange(q.shape[1]) < lengths[:, None])[..., None, None], out, 0)

    def shared_pages(self) -> TpuPages:
        return TpuPages(self.target, self.interpret)

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """Of 8-bit numbers with a scale for each token, where pages are wide enough for these."""
        pages = allocate_tpu_cache(group, num_pages=num_pages, page_size=page_size, dtype=dtype)
        if jnp.dtype(dtype).name in LARGEST and page_size % LANES == 0:
            return TokenScaled.of(pages, page_size)
        return pages

    def memory(self) -> MemoryInfo:
        info = super().memory()
        if self.interpret or jax.default_backend() == "tpu":
            return info
        total = chip(self.target).device_hbm_bytes
        return MemoryInfo(total=total, free=total)

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        """Doubling from 16, the rows of a bf16 tile; by larger factors where that makes more than eight."""
        for growth in (2, 4, 8, 16, 32):
            sizes = [_MIN_BUCKET]
            while sizes[-1] < max_tokens:
                sizes.append(sizes[-1] * growth)
            if len(sizes) <= _MAX_BUCKETS:
                break
        return tuple(min(size, max(max_tokens, _MIN_BUCKET)) for size in sizes)

    def _attend(
        self,
        q: Float[Array, "T N H"],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        spec: AttentionSpec,
        sinks: Float[Array, "N"] | None,
    ) -> tuple[Float[Array, "T N H"], PyTree]:
        """Rows of few queries by one kernel, those of many by the other; each passes over the rows that are not its."""
        how: dict[str, Any] = dict(generation=self.target, interpret=self.interpret, mask=index.mask)
        if index.max_query_len is not None and index.max_query_len <= MAX_QUERIES:
            return decode_attention(q, k, v, cache, layer, index, spec, sinks, **how)
        # In a mixed batch the rows of one query are most: the narrowest decode kernel serves them best.
        out, cache = decode_attention(q, k, v, cache, layer, index, spec, sinks, max_decode_len=1, **how)
        return prefill_attention(q, k, v, cache, layer, index, spec, sinks, limit=1, out=out, **how)
