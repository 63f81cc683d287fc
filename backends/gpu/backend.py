"""The backend of GPUs: attention in Pallas Triton and cuDNN, everything else by XLA, for CUDA and ROCm."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .. import hardware, ragged_attention
from ..base import AttentionSpec, CacheGroup, Capabilities, Carry, MemoryInfo, Program, PyTree, RaggedIndex
from ..errors import UnsupportedError
from ..reference import ReferenceBackend
from .attention import gpu_ragged_attention
from .blocks import MAX_HEAD_DIM
from .chips import GpuChip, attached_chip, chip_named
from .compiler_options import compiler_options
from .dense import dense_attention
from .pages import allocate_gpu_cache
from .shared_pages import GpuPages

PAGE_SIZES = (16, 32, 64, 128, 256)
_DTYPES = ("float32", "bfloat16", "float16")
_SMALL_BUCKETS = (16, 32, 64, 128, 256)
_MAX_BUCKETS = 8
_INTERPRETED = "h100"
_FAST_COMPILE = {"xla_backend_optimization_level": "0"}


@dataclass(frozen=True)
class GpuBackend(ReferenceBackend):
    """Kernels for one kind of GPU: the attached one, or with `chip` one named in chips.yaml to be compiled for.

    `interpret` runs the kernels on any device, one program after another: for tests.
    """

    name: str = "gpu"
    page_size: int = 16
    capabilities: Capabilities = Capabilities(
        dtypes=_DTYPES,
        kv_dtypes=_DTYPES,
        head_dims=tuple(range(1, MAX_HEAD_DIM + 1)),
        page_sizes=PAGE_SIZES,
        matmul_dtypes=("float32", "bfloat16", "int8"),
    )
    chip: str | None = None
    interpret: bool = False
    target: GpuChip = field(init=False)

    def __post_init__(self) -> None:
        """Finds out what to choose kernels for.

        Raises:
            UnsupportedError: there is no GPU, or not one of that name.
        """
        named = self.chip or (_INTERPRETED if self.interpret else None)
        object.__setattr__(self, "target", chip_named(named) if named else attached_chip())

    @property
    def attached(self) -> bool:
        """The chip is in this machine."""
        return self.chip is None and not self.interpret

    @property
    def kernels(self) -> Mapping[str, str]:
        """What each operation runs on."""
        how = f"Pallas Triton for {self.target.name}{', interpreted' if self.interpret else ''}"
        dense = f"{how}: dense_attention"
        return {
            "ragged_attention (decode)": f"{how}: decode_attention, combine_attention",
            "ragged_attention (prefill)": f"{how}: prefill_attention",
            "dense_attention": f"cuDNN where it applies, else {dense}" if self.attached else dense,
            "linear": "XLA (cuBLAS)" if self.target.platform == "cuda" else "XLA",
            "grouped_linear": "XLA (ragged dot)",
            "embed": "XLA",
        }

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        """Of compiler_options.yaml; where kernels are interpreted, to compile fast what will run a few times."""
        return _FAST_COMPILE if self.interpret else compiler_options(self.target, attached=self.attached)

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
        if page_size not in PAGE_SIZES:
            supported = ", ".join(map(str, PAGE_SIZES))
            raise UnsupportedError(f"backend {self.name}: page size {page_size}, supported are {supported}")
        for group in groups:
            if not 1 <= group.head_dim <= MAX_HEAD_DIM:
                raise UnsupportedError(
                    f"backend {self.name}: head width {group.head_dim}, supported are 1 to {MAX_HEAD_DIM}"
                )

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
        index = index.without_mask(self.name)
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
        """Causal attention of each row to its own first `lengths[b]` tokens (None: all T); zeros at the others."""
        return dense_attention(
            q, k, v, spec, sinks, chip=self.target, attached=self.attached, lengths=lengths, interpret=self.interpret
        )

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        """One layer behind the other, so that a step is one graph of kernels: in a loop the host works out, turn by
        turn, where a layer's weights begin, and small layers wait for it."""
        if self.interpret:
            return super().layer_loop(body, carry, stacked, length)
        for number in range(length):
            layer = jax.tree.map(partial(jax.lax.index_in_dim, index=number, keepdims=False), stacked)
            carry = body(carry, layer, jnp.int32(number))
        return carry

    def shared_pages(self) -> GpuPages:
        return GpuPages(self.target, self.interpret)

    def allocate_cache(
        self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> Float[Array, "L P 2 K page H"]:
        return allocate_gpu_cache(group, num_pages=num_pages, page_size=page_size, dtype=dtype)

    def compile(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree], donate: Sequence[int] = ()
    ) -> Program:
        with warnings.catch_warnings():
            # Pallas asks for Mosaic instead, which has no AMD and nothing older than Hopper.
            warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
            return super().compile(step, abstract_args, donate)

    def memory(self) -> MemoryInfo:
        if self.chip is None or self.target.name not in hardware.chips():
            return super().memory()
        total = hardware.chip(self.target.name).device_hbm_bytes
        return MemoryInfo(total=total, free=total)

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        """Doubling while a step only reads weights (fewer than 16 rows take as long as 16), in larger steps above."""
        small = [size for size in _SMALL_BUCKETS if size < max_tokens]
        if len(small) < len(_SMALL_BUCKETS):
            return (*small, next(size for size in _SMALL_BUCKETS if size >= max_tokens))
        for growth in (2, 4, 8, 16, 32):
            large = [_SMALL_BUCKETS[-1] * growth]
            while large[-1] < max_tokens:
                large.append(large[-1] * growth)
            if len(small) + len(large) <= _MAX_BUCKETS:
                break
        return (*small, *large[:-1], max_tokens)

    def _attend(self, *operands: Any) -> tuple[Array, PyTree]:
        out, cache = gpu_ragged_attention(*operands, chip=self.target, interpret=self.interpret)
        return out, cache
