"""One process of a layout whose devices are processes: it holds its part of everything, and runs its device's part of
the programs of all.

JAX, whose CPU devices stand for the processes, decides who loads what; it computes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ..backends.base import Backend, CacheGroup, MemoryInfo, Program, PyTree
from ..backends.errors import UsageError
from ..models.decoder import Weights
from ..models.kv_cache import copy_pages
from ..models.step import Step
from .backend import ShardedBackend
from .layout import Axes
from .step import WHOLE


def check_processes(inner: Backend, layout: str) -> None:
    """
    Raises:
        UsageError: this process was started alone, or has several devices.
    """
    if jax.process_count() == 1:
        raise UsageError(
            f"layout {layout}: backend {inner.name} has a process for each device; start as many as the layout has, "
            "each with --coordinator, --num-hosts and a --host of its own"
        )
    if jax.local_device_count() != 1:
        raise UsageError(
            f"layout {layout}: {jax.local_device_count()} devices in this process, and backend {inner.name} has one in "
            "each; leave --devices out"
        )


@dataclass(frozen=True)
class RankedBackend(ShardedBackend):
    """Used as a ShardedBackend on each of the processes. Weights and cache are this process' part; bytes are its own.

    Args:
        inner: of this process among those of the mesh.
        rank: its number.
    """

    rank: int = 0

    def prepare_params(self, params: Weights) -> PyTree:
        """This process' part in the chip's own form."""
        return self.model.part_backend.prepare_params(jax.tree.map(self._own, self.placed(params)))

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """This process' part."""
        part = self.model.cache_part(group)
        return self.model.part_backend.allocate_cache(part, num_pages=num_pages, page_size=page_size, dtype=dtype)

    def memory(self) -> MemoryInfo:
        """Of this process' device."""
        return self.inner.memory()

    def compile(
        self, step: Callable[..., PyTree], abstract_args: Sequence[PyTree], donate: Sequence[int] = ()
    ) -> Program:
        """Of weights and caches the shapes of this process' part, of everything else those of the whole, which every
        process has."""
        specs, function, told = self.over_mesh(step, abstract_args)
        held = 2 if isinstance(step, Step) else 1 if step is copy_pages else 0
        parts = tuple(_mapped(self._whole, *each) for each in zip(specs[:held], abstract_args[:held], strict=True))
        others = tuple(abstract_args[held:])
        program = self.inner.compile(function, (*parts, *others), donate)
        cuts = [
            self._cut(spec, leaf) if any(spec) else None
            for spec, leaf in zip(_per_leaf(specs[held:], others), jax.tree.leaves(others), strict=True)
        ]
        told_by = None if told is None else self._teller(told, jax.eval_shape(function, *parts, *others)[0])
        return RankedProgram(program, held, tuple(cuts), told_by)

    def _teller(self, specs: PyTree, outputs: PyTree) -> Program | None:
        """A program that makes what a step tells whole in every process; None if it is."""
        if not any(any(spec) for spec in _per_leaf(specs, outputs)):
            return None

        def gathered(tree: PyTree) -> PyTree:
            return _mapped(_gathered, specs, tree)

        function = jax.shard_map(gathered, mesh=self.mesh, in_specs=(specs,), out_specs=WHOLE, check_vma=False)
        return self.inner.compile(function, (outputs,))

    def _own(self, leaf: jax.Array) -> jax.Array:
        device = self.mesh.devices.flat[self.rank]
        return next(part.data for part in leaf.addressable_shards if part.device == device)

    def _whole(self, spec: PartitionSpec, part: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of what this is a part of."""
        shape = [
            size * self.layout.size(axes) for size, axes in zip(part.shape, _axes(spec, len(part.shape)), strict=True)
        ]
        return jax.ShapeDtypeStruct(tuple(shape), part.dtype)

    def _cut(self, spec: PartitionSpec, whole: Any) -> tuple[slice, ...]:
        """Where this process' part of an array is."""
        return NamedSharding(self.mesh, spec).devices_indices_map(whole.shape)[self.mesh.devices.flat[self.rank]]


@dataclass(frozen=True)
class RankedProgram:
    """A program of all processes, to be called in each with the same arrays, but for the parts that it holds.

    Args:
        program: takes parts.
        held: arguments that are parts, the first ones.
        cuts: of each leaf of the others where this process' part is; None: it has all.
        teller: makes the first output whole; None: it is, or nobody looks at it.
    """

    program: Program
    held: int
    cuts: tuple[tuple[slice, ...] | None, ...]
    teller: Program | None

    def __call__(self, *arguments: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(tuple(arguments[self.held :]))
        parts = [leaf if cut is None else _part(leaf, cut) for leaf, cut in zip(leaves, self.cuts, strict=True)]
        outputs = self.program(*arguments[: self.held], *jax.tree.unflatten(structure, parts))
        return outputs if self.teller is None else (self.teller(outputs[0]), *outputs[1:])

    def as_text(self) -> str | None:
        return self.program.as_text()

    def memory_analysis(self) -> Any:
        return self.program.memory_analysis()


def _part(leaf: Any, cut: tuple[slice, ...]) -> Any:
    """Of what the host has; what programs gave is this process' part already."""
    return leaf[cut] if isinstance(leaf, np.ndarray) else leaf


def _is_spec(node: PyTree) -> bool:
    return isinstance(node, PartitionSpec)


def _mapped(function: Callable[[PartitionSpec, Any], Any], specs: PyTree, tree: PyTree) -> PyTree:
    """Each leaf with its spec; a spec stands for all leaves that it stands above."""
    return jax.tree.map(
        lambda spec, part: jax.tree.map(partial(function, spec), part), specs, tree, is_leaf=_is_spec
    )  # fmt: skip


def _per_leaf(specs: PyTree, tree: PyTree) -> list[PartitionSpec]:
    return jax.tree.leaves(_mapped(lambda spec, _: spec, specs, tree), is_leaf=_is_spec)


def _axes(spec: PartitionSpec, ndim: int) -> list[Axes]:
    """The mesh axes that split each axis of an array."""
    names = [name if isinstance(name, tuple) else () if name is None else (name,) for name in spec]
    return [*names, *[()] * (ndim - len(names))]


def _gathered(spec: PartitionSpec, x: jax.Array) -> jax.Array:
    for axis, axes in enumerate(_axes(spec, x.ndim)):
        if axes:
            x = jax.lax.all_gather(x, axes, axis=axis, tiled=True)
    return x
