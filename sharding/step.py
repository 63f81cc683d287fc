"""The pure step under a layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jax.typing import DTypeLike

from ..backends.base import Backend, CacheGroup, PyTree
from ..backends.quantized import Rounding
from ..backends.shared_pages import ReferencePages, shared_pages
from ..models.config import ModelConfig
from ..models.decoder import unflatten
from ..models.kv_cache import copy_pages
from ..models.row_state import RowState, admit
from ..models.step import PromptOutput, Step, StepBatch, StepOutput
from .arrange import abstract, arranged, kv_copies, rounded
from .context import ContextBackend, PlainPages
from .errors import UnsupportedLayoutError
from .exchange import ExchangeBackend
from .layout import Layout
from .placement import MeshPlacement
from .stages import Stages

WHOLE = PartitionSpec()


@dataclass(frozen=True)
class ShardedModel:
    """A model under a layout: specs of everything that a step takes, and the step itself.

    A device's part of the weights and of the cache has the form that the chip's own backend gives it. The whole is
    those parts one behind the other, along the first axis of packed weights and along the pages of the cache: nobody
    looks into it from outside. `roundings` are of the weights that come as Quantized, by their paths.
    """

    config: ModelConfig
    layout: Layout
    backend: Backend
    dtype: DTypeLike
    roundings: Mapping[str, Rounding] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> Mapping[str, PyTree]:
        """Each leaf of the weights as Arranged, or Quantized of what its numbers and its scales are arranged like."""
        return rounded(arranged(self.config, self.layout, self.dtype), self.roundings)

    @property
    def part_backend(self) -> Backend:
        """What runs on each device, in a step of one token."""
        return self.backend_of(MeshPlacement.of(self.layout, self.config, num_tokens=1, decode=True))

    def backend_of(self, placement: MeshPlacement) -> Backend:
        """What runs on each device in a step."""
        chip, layout = self.backend, self.layout
        axes = layout.axes("context")
        exchanged = placement.exchanged
        as_stored = layout.gathers_weights and chip.capabilities.packed_weights
        made: Any = chip
        if axes:
            pages = shared_pages(chip)
            if pages is None:
                chip, pages = PlainPages(chip), ReferencePages()
            made = ContextBackend(chip, axes, layout.size(axes), placement.attended == axes, pages)
        elif exchanged or as_stored:
            split = bool(exchanged) and placement.attended == exchanged
            made = ExchangeBackend(chip, exchanged, layout.size(exchanged), split, as_stored)
        return made

    def weight_specs(self) -> PyTree:
        """A PartitionSpec for each leaf of the weights in the backend's form."""
        parts = abstract(self.leaves, part=True)
        prepared = jax.eval_shape(self.part_backend.prepare_params, unflatten(parts))
        specs: dict[str, Any] = {}
        for path, leaf in self.leaves.items():
            node = prepared
            for name in path.split("."):
                node = node[name]
            if _shapes(node) == _shapes(parts[path]):
                specs[path] = jax.tree.map(lambda each: each.spec, leaf)
            else:  # in the order of the mesh, as shard_map numbers devices
                used = {axis for each in jax.tree.leaves(leaf) for axes in each.axes for axis in axes}
                along = PartitionSpec(tuple(axis for axis in self.layout.sizes if axis in used) or None)
                specs[path] = jax.tree.map(lambda _, along=along: along, node)
        return unflatten(specs)

    @property
    def cache_spec(self) -> PartitionSpec:
        """Of every leaf of the cache [L, P, ...]."""
        axes = self.layout.axes("context") + self.layout.axes("cache_heads")
        data = ("data",) if self.layout.replicas > 1 else ()
        return PartitionSpec(self.layout.axes("layers") or None, (*data, *axes) or None)

    @property
    def batch_spec(self) -> PartitionSpec:
        """Of the leading axis of row state and batch: each replica has rows of its own."""
        return PartitionSpec("data") if self.layout.replicas > 1 else WHOLE

    def cache_part(self, group: CacheGroup) -> CacheGroup:
        """What one device holds of a group."""
        heads = group.num_kv_heads * kv_copies(group.num_kv_heads, self.layout)
        stages = Stages(self.config, self.layout.parts("layers"))
        return replace(
            group,
            num_layers=stages.layers_held[self.config.cache_groups.index(group)],
            num_kv_heads=heads // self.layout.parts("cache_heads"),
        )

    def prepare(self, mesh: Mesh | AbstractMesh) -> Callable[[PyTree], PyTree]:
        """Gives arranged weights the backend's form, each device its part."""
        specs = unflatten(jax.tree.map(lambda each: each.spec, dict(self.leaves)))
        return self._mapped(self.part_backend.prepare_params, mesh, (specs,), self.weight_specs())

    def allocate(
        self, mesh: Mesh | AbstractMesh, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> Callable[[], PyTree]:
        """Makes the cache of a group; `num_pages` are those of one replica."""
        part = self.cache_part(group)

        def allocate() -> PyTree:
            return self.part_backend.allocate_cache(part, num_pages=num_pages, page_size=page_size, dtype=dtype)

        return self._mapped(allocate, mesh, (), self.cache_spec)

    def step_specs(self, batch: StepBatch) -> tuple[PyTree, ...]:
        """Of weights, cache, row state and batch."""
        rows = jax.tree.map(lambda leaf: self.batch_spec if leaf.ndim else WHOLE, batch)
        return self.weight_specs(), self.cache_spec, self.batch_spec, rows

    def step(self, step: Step, mesh: Mesh | None, batch: StepBatch) -> Callable[..., PyTree]:
        """The step with this layout's collectives in it; `step` is that of one replica.

        Args:
            step: of one device.
            mesh: None is the one that is ambient when it is traced.
            batch: only whether its leaves are scalars is looked at.
        """
        placement = MeshPlacement.of(self.layout, self.config, num_tokens=step.num_tokens, decode=step.decode)
        if step.max_steps > 1 and self.layout.in_step:
            raise UnsupportedLayoutError(
                f"layout {self.layout}: {step.max_steps} decode steps in a call; replicas that wait for each other in "
                "each step run one"
            )
        placed = replace(step, backend=self.backend_of(placement), placement=placement)

        def of_replica(weights: PyTree, cache: PyTree, state: RowState, batch: StepBatch) -> PyTree:
            # Replicas may run differently many decode steps: each has its number.
            return placed(weights, cache, state, replace(batch, num_steps=batch.num_steps.reshape(())))

        outputs = (self.output_specs(step), self.cache_spec, self.batch_spec)
        return self._mapped(of_replica, mesh, self.step_specs(batch), outputs)

    def output_specs(self, step: Step) -> PyTree:
        """Of what a step tells."""
        rows: Any = self.batch_spec
        width: Any = PartitionSpec(*(rows or (None,)), self.layout.axes("embed") or None)
        prompt: Any = PromptOutput(rows, width, width) if step.prompt else rows
        return StepOutput(rows, rows, rows, prompt, rows, rows)

    def copy_pages(self, mesh: Mesh) -> Callable[..., PyTree]:
        """models.kv_cache.copy_pages on each device's part, of each replica its own pages."""
        ids = self.batch_spec
        return self._mapped(copy_pages, mesh, (self.cache_spec, ids, ids), self.cache_spec)

    def admit(self, mesh: Mesh) -> Callable[..., PyTree]:
        """models.row_state.admit, of each replica its own slots and rows."""
        return self._mapped(admit, mesh, (self.batch_spec,) * 3, self.batch_spec)

    def _mapped(
        self,
        function: Callable[..., PyTree],
        mesh: Mesh | AbstractMesh | None,
        in_specs: tuple[PyTree, ...],
        out_specs: PyTree,
    ) -> Callable[..., PyTree]:
        # What is whole everywhere comes out of the same sums on every device; the checker cannot know that.
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _shapes(node: PyTree) -> Any:
    """What is the same for leaves of one form."""
    leaves, structure = jax.tree.flatten(node)
    return structure, [leaf.shape for leaf in leaves]
