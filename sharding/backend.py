"""The devices of one replica as a backend: what runs on one chip runs on them unchanged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..backends.base import (
    AttentionSpec,
    Backend,
    CacheGroup,
    Capabilities,
    Carry,
    MemoryInfo,
    Program,
    PyTree,
    RaggedIndex,
)
from ..backends.quantized import Rounding, is_quantized
from ..backends.rounded_tokens import RoundedTokens
from ..models.checkpoints import Placed
from ..models.config import ModelConfig
from ..models.decoder import Weights, WeightSpec, flatten, unflatten
from ..models.kv_cache import copy_pages
from ..models.row_state import admit
from ..models.step import Step
from .arrange import arranged
from .errors import UnsupportedLayoutError
from .layout import Layout
from .spread import SpreadProgram, spans_hosts, tell_everybody
from .step import WHOLE, ShardedModel


@dataclass(frozen=True)
class ShardedBackend:
    """A chip's backend on each device of a mesh.

    Weights, caches and steps are laid out; single operations are the chip's own. Bytes, of pages and of memory, are
    those of all devices together.

    Args:
        inner: the backend of one device.
        config, dtype: the model's.
        layout: of one replica, or of several in one program: row state, batch and pages are then those of each
            replica behind each other.
        mesh: its devices.
        remarks: what is to be said of the layout, though it fits.
        roundings: of the weights that come as Quantized, by their paths.
    """

    inner: Backend
    config: ModelConfig
    dtype: DTypeLike
    layout: Layout
    mesh: Mesh
    remarks: tuple[str, ...] = ()
    roundings: Mapping[str, Rounding] = field(default_factory=dict)

    @cached_property
    def model(self) -> ShardedModel:
        return ShardedModel(self.config, self.layout, self.inner, self.dtype, self.roundings)

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:
        return self.model.part_backend.capabilities

    @property
    def page_size(self) -> int:
        return self.inner.page_size

    @property
    def kernels(self) -> Mapping[str, str]:
        return self.model.part_backend.kernels

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        return self.inner.compiler_options

    def check(
        self,
        groups: Sequence[CacheGroup],
        *,
        dtype: DTypeLike,
        kv_dtype: DTypeLike,
        page_size: int,
        table_entries: int = 0,
    ) -> None:
        shares = self.layout.parts("context")
        if page_size % shares:
            raise UnsupportedLayoutError(
                f"layout {self.layout}: pages of {page_size} positions do not divide into {shares} shares"
            )
        parts = [self.model.cache_part(group) for group in groups]
        self.model.part_backend.check(
            parts, dtype=dtype, kv_dtype=kv_dtype, page_size=page_size // shares, table_entries=table_entries
        )

    def place(self, spec: WeightSpec) -> Placed:
        """Where a leaf is loaded to, with the copies and the padding that it has there; also each part of one
        that comes as Quantized."""
        return self._placed[spec.path]

    def copied(self, params: Weights) -> Weights:
        """Weights that lie on another replica's devices, as its `place` says, on these."""
        return self._each(params, lambda where, leaf: jax.device_put(leaf, where.sharding))

    def prepare_params(self, params: Weights) -> PyTree:
        """Each device's part in the chip's own form, of weights that lie as `place` says or have the checkpoint's
        form."""
        return jax.jit(self.model.prepare(self.mesh))(self.placed(params))

    def placed(self, params: Weights) -> Weights:
        """Weights that have the checkpoint's form as `place` says; those that lie so are left."""

        def placed(where: Placed, leaf: Array) -> Array:
            if leaf.shape == where.shape:
                return leaf if leaf.sharding == where.sharding else jax.device_put(leaf, where.sharding)
            whole = jax.device_put(leaf, NamedSharding(self.mesh, WHOLE))
            return jax.jit(where.arrange, out_shardings=where.sharding)(whole)

        return self._each(params, placed)

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """The parts of all devices, one behind the other along the pages."""
        return jax.jit(self.model.allocate(self.mesh, group, num_pages=num_pages, page_size=page_size, dtype=dtype))()

    def compile(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree], donate: Sequence[int] = ()
    ) -> Program:
        """A step or a copy of pages with its collectives; any other function runs whole on each device."""
        specs, step, outputs = self.over_mesh(step, abstract_args)
        placed = [self._laid(*each) for each in zip(specs, abstract_args, strict=True)]
        program = self.inner.compile(step, placed, donate)
        if not spans_hosts(self.mesh):
            return program
        told = None if outputs is None else self._laid(outputs, jax.eval_shape(step, *placed)[0])
        return SpreadProgram(program, placed, None if told is None else tell_everybody(self.mesh, told))

    def over_mesh(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree]
    ) -> tuple[tuple[PyTree, ...], Callable[..., PyTree], PyTree]:
        """What is compiled of a function: specs of its arguments, the function over the mesh, and specs of what a step
        tells (None: nobody looks at it)."""
        if isinstance(step, Step):
            batch = abstract_args[3]
            return self.model.step_specs(batch), self.model.step(step, self.mesh, batch), self.model.output_specs(step)
        if step is copy_pages:
            ids = self.model.batch_spec
            return (self.model.cache_spec, ids, ids), self.model.copy_pages(self.mesh), None
        if step is admit:
            return (self.model.batch_spec,) * 3, self.model.admit(self.mesh), None
        return (WHOLE,) * len(abstract_args), step, None

    def put(self, tree: PyTree, sharding: Sharding | None = None) -> PyTree:
        return self.inner.put(tree, sharding or NamedSharding(self.mesh, WHOLE))

    def get(self, tree: PyTree) -> PyTree:
        return self.inner.get(tree)

    def memory(self) -> MemoryInfo:
        """Of all devices; those that share the host's memory have it once."""
        one = _memory_of(self.mesh) or self.inner.memory()
        times = 1 if one.shared else self.layout.num_devices
        return MemoryInfo(one.total * times, one.free * times, one.shared)

    def buckets(self, max_tokens: int) -> tuple[int, ...]:
        return self.inner.buckets(max_tokens)

    def with_rows(self, count: Int[Array, ""]) -> Backend:
        return self.inner.with_rows(count)

    def linear(
        self,
        x: Float[Array, "T *in"] | RoundedTokens,
        weight: PyTree,
        equation: str,
        *,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "T *out"]:
        return self.inner.linear(x, weight, equation, out_dtype=out_dtype)

    def linears(
        self, x: Float[Array, "T *in"] | RoundedTokens, weights: Sequence[PyTree], equations: Sequence[str]
    ) -> tuple[Float[Array, "T *out"], ...]:
        return self.inner.linears(x, weights, equations)

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        return self.inner.grouped_linear(x, weight, group_sizes)

    def silu_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"]) -> Float[Array, "T F"]:
        return self.inner.silu_gate(gate, up)

    def rms_norm(
        self, x: Float[Array, "*T D"], scale: Float[Array, "*D"], *, offset: float, epsilon: float
    ) -> Float[Array, "*T D"]:
        return self.inner.rms_norm(x, scale, offset=offset, epsilon=epsilon)

    def rotate(
        self, q: Float[Array, "T N H"], k: Float[Array, "T K H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]
    ) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"]]:
        return self.inner.rotate(q, k, cos, sin)

    def rounded_norm(
        self,
        x: Float[Array, "T D"],
        scale: Float[Array, "D"],
        weights: Sequence[PyTree],
        *,
        offset: float,
        epsilon: float,
    ) -> RoundedTokens | None:
        return self.inner.rounded_norm(x, scale, weights, offset=offset, epsilon=epsilon)

    def rounded_gate(self, gate: Float[Array, "T F"], up: Float[Array, "T F"], weight: PyTree) -> RoundedTokens | None:
        return self.inner.rounded_gate(gate, up, weight)

    def embed(self, table: PyTree, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
        return self.inner.embed(table, ids)

    def layer_loop(
        self, body: Callable[[Carry, PyTree, Int[Array, ""]], Carry], carry: Carry, stacked: PyTree, length: int
    ) -> Carry:
        return self.inner.layer_loop(body, carry, stacked, length)

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
        return self.inner.ragged_attention(q, k, v, cache, layer, index, spec, sinks)

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
        return self.inner.dense_attention(q, k, v, spec, sinks, lengths=lengths)

    @cached_property
    def _placed(self) -> Mapping[str, Placed]:
        """Of each leaf by its path, and of the parts of those that come as Quantized."""
        found = {path: each.placed(self.mesh) for path, each in arranged(self.config, self.layout, self.dtype).items()}
        for path in self.roundings:
            parts = self.model.leaves[path].parts
            found |= {f"{path}.{name}": part.placed(self.mesh) for name, part in parts.items()}
        return found

    def _each(self, params: Weights, put: Callable[[Placed, Array], Array]) -> Weights:
        """The weights with each array put where it belongs."""

        def whole(path: str, leaf: PyTree) -> PyTree:
            if not is_quantized(leaf):
                return put(self._placed[path], leaf)
            parts = {name: put(self._placed[f"{path}.{name}"], part) for name, part in leaf.parts.items()}
            return replace(leaf, **parts)

        return unflatten({path: whole(path, leaf) for path, leaf in flatten(params).items()})

    def _laid(self, specs: PyTree, argument: PyTree) -> PyTree:
        def place(spec: PartitionSpec, part: PyTree) -> PyTree:
            sharding = NamedSharding(self.mesh, spec)
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

        return jax.tree.map(place, specs, argument, is_leaf=lambda node: isinstance(node, PartitionSpec))


def _memory_of(mesh: Mesh) -> MemoryInfo | None:
    """Of this process's first device of a mesh, where it says."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    stats = local[0].memory_stats() if local else None
    if not stats or "bytes_limit" not in stats:
        return None
    return MemoryInfo(total=stats["bytes_limit"], free=stats["bytes_limit"] - stats.get("bytes_in_use", 0))
