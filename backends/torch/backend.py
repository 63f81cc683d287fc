"""The backend of torch devices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Sharding
from jax.typing import DTypeLike

from ..base import CacheGroup, Capabilities, MemoryInfo, Program, PyTree
from ..errors import UnsupportedError
from ..reference import ReferenceBackend
from ..shared_pages import SharedPages
from ..token_scales import LARGEST, TokenScaled
from .array import DeviceArray, to_tensor
from .drivers import Driver, driver_for
from .flat_jaxpr import FlatJaxpr
from .graph import lower
from .lowered import Target
from .program import TorchProgram
from .ranks import Ranks, meet

_FLOATS = ("float32", "bfloat16")
_SMALL = (1, 8, 16, 32, 64)
_MAX_BUCKETS = 8


@dataclass(frozen=True)
class TorchBackend(ReferenceBackend):
    """What is traced is the reference's; what runs is the torch.fx graph that the trace becomes.

    Args:
        device: cpu, xla or hpu.
        ranks: the processes that run a layout's programs together, each with a device's part (None: this one alone).
    """

    name: str = "torch:cpu"
    device: str = "cpu"
    ranks: Ranks | None = None
    page_size: int = 16
    capabilities: Capabilities = Capabilities(
        dtypes=_FLOATS,
        kv_dtypes=_FLOATS,
        custom_masks=True,
    )

    def __post_init__(self) -> None:
        """Raises:
        UnsupportedError: torch, or what reaches the device, is missing.
        """
        scaled = tuple(LARGEST) if self.driver.reads_values else ()  # where attention has a form for them
        kv_dtypes = (
            *self.capabilities.kv_dtypes,
            *(each for each in scaled if each not in self.capabilities.kv_dtypes),
        )
        capabilities = replace(self.capabilities, rehearsals=self.driver.rehearsals, kv_dtypes=kv_dtypes)
        object.__setattr__(self, "capabilities", capabilities)

    @property
    def driver(self) -> Driver:
        """What reaches the device."""
        return driver_for(self.device)

    @property
    def kernels(self) -> Mapping[str, str]:
        made = self.driver.describe()
        return {
            "ragged_attention": f"{made}: scaled_dot_product_attention over gathered pages",
            "dense_attention": made,
            "linear": f"{made}: linear",
            "grouped_linear": f"{made}: linear for each group",
            "embed": f"{made}: index",
        }

    def among(self, sizes: Sequence[tuple[str, int]], rank: int) -> "TorchBackend":
        """As OfProcesses has it."""
        if self.driver.collectives() is None:
            raise UnsupportedError(
                f"backend {self.name}: layouts over processes, which torch.distributed cannot connect with such "
                "devices; supported by torch:cpu and torch:hpu"
            )
        return replace(self, ranks=Ranks(tuple(sizes), rank))

    def meet(self, host: str, port: int, *, rank: int, count: int, timeout: float) -> None:
        """As OfProcesses has it."""
        meet(self.driver.collectives(), host, port, rank=rank, count=count, timeout=timeout)

    def prepare_params(self, params: PyTree) -> PyTree:
        """On the device; arrays of JAX on the host are handed over without a copy where the device is the host.

        Raises:
            UnsupportedError: the weights are being traced, by a layout that spreads them over JAX's devices; or they
                are floats of 8 bits, whose range is another one on some devices (e4m3 ends at 240 on Gaudi 2).
        """
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(params)):
            if self.ranks is not None:
                return params  # of all processes, each of which keeps its part afterwards
            raise UnsupportedError(f"backend {self.name}: weights that are being traced, and no layout over processes")
        for leaf in jax.tree.leaves(params):
            if leaf.dtype.name.startswith("float8") and not self.driver.reads_values:
                raise UnsupportedError(
                    f"backend {self.name}: weights of {leaf.dtype.name}, supported are floats of 16 and 32 bits, int8 "
                    "and int4 (8-bit floats on torch:cpu alone); round with --quantize int8, int8-weight or int4"
                )
        return jax.tree.map(self._kept, params)

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        # numpy's zeros take no memory before they are written, and no program of JAX makes them.
        shape = (group.num_layers, num_pages, page_size, 2, group.num_kv_heads, group.head_dim)
        pages: Any = np.zeros(shape, jax.numpy.dtype(dtype))
        if pages.dtype.name not in LARGEST:
            return pages
        return TokenScaled(pages, np.zeros((*shape[:2], 2, page_size), np.float32))  # pyright: ignore[reportArgumentType]

    def shared_pages(self) -> SharedPages | None:
        return None

    def compile(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree], donate: Sequence[int] = ()
    ) -> Program:
        """Raises:
        UnsupportedError: names the primitives that have no rule, and where they were written; or the device has no room
        for what a run takes.
        """
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tuple(abstract_args))
        traced = jax.jit(step).trace(*shapes)
        donated = _leaves_of(shapes, donate)
        driver = self.driver
        cut = None if driver.reads_values else driver.finish
        target = Target(driver.device, driver.reads_values, driver.attention(), cut, self.ranks)
        lowered = lower(traced.lojax.jaxpr, target, given=donated)
        self._check_room(lowered.scratch)
        return TorchProgram(
            self.driver.compile(lowered.module),
            lowered.module,
            shapes if self.ranks is None else _parts(lowered.program, shapes),
            traced.out_info,
            donated=frozenset(donated),
            unread=frozenset() if self.ranks is None else _unread(lowered.program),
            device=self.driver.device,
            finish=self.driver.finish,
        )

    def _check_room(self, scratch: int) -> None:
        """Before a device records a program, since running out of memory there may end the process."""
        memory = self.driver.memory()
        if memory is not None and scratch > memory.free:
            raise UnsupportedError(
                f"backend {self.name}: a step takes {scratch / 2**20:.1f} MiB beside weights and cache, and the device "
                f"has {memory.free / 2**20:.1f} MiB left; lower --kv-memory, --max-batch or --context"
            )

    def put(self, tree: PyTree, sharding: Sharding | None = None) -> PyTree:
        # Who donates what comes out has it written over, and arrays of JAX do not change.
        return jax.tree.map(lambda leaf: self._kept(np.array(leaf) if isinstance(leaf, jax.Array) else leaf), tree)

    def get(self, tree: PyTree) -> PyTree:
        return jax.tree.map(np.asarray, tree)

    def _kept(self, leaf: Any) -> DeviceArray:
        return DeviceArray(to_tensor(leaf, self.driver.device), leaf.dtype)

    def memory(self) -> MemoryInfo:
        return self.driver.memory() or super().memory()

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        """Fine steps where decoding is, coarser ones above."""
        small = [size for size in _SMALL if size < max_tokens]
        if len(small) < len(_SMALL):
            return (*small, max_tokens)
        for growth in (2, 4, 8, 16, 32, 64):
            large = [_SMALL[-1] * growth]
            while large[-1] < max_tokens:
                large.append(large[-1] * growth)
            if len(small) + len(large) <= _MAX_BUCKETS:
                break
        return (*small, *large[:-1], max_tokens)


def _parts(program: FlatJaxpr, shapes: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """What one process gives to a program for all of them."""
    leaves, structure = jax.tree.flatten(shapes)
    given = [program.avals[value].shape for value in program.inputs]
    parts = [jax.ShapeDtypeStruct(shape, leaf.dtype) for shape, leaf in zip(given, leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


def _unread(program: FlatJaxpr) -> frozenset[int]:
    """The inputs that no operation reads: their parts' shapes are not known, since JAX leaves them out of what it maps
    over a mesh."""
    last = program.last_uses()
    return frozenset(place for place, value in enumerate(program.inputs) if value not in last)


def _leaves_of(args: Sequence[PyTree], chosen: Sequence[int]) -> list[int]:
    """The numbers of the leaves of some arguments, among those of all."""
    counts = [len(jax.tree.leaves(arg)) for arg in args]
    return [place for arg in chosen for place in range(sum(counts[:arg]), sum(counts[: arg + 1]))]
