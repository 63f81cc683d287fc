"""What a process of a layout reads of a checkpoint, and the memory that this takes: arithmetic, before it starts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ..models.checkpoints import Split
from ..models.checkpoints.assemble import BLOCK_BYTES, STAGED, leaf_plans
from ..models.checkpoints.base import NamedTensors
from ..models.checkpoints.runs import Box, volume
from ..models.checkpoints.shards import stored_box
from ..models.config import ModelConfig
from ..models.decoder import WeightSpec, weight_specs
from .arrange import Arranged, arranged
from .check import Devices, check_layout
from .layout import Layout


@dataclass(frozen=True)
class LoadPlan:
    """Bytes of one process.

    Args:
        read: of the files, unwanted ones between ranges of remote files included.
        requests: how many reads that takes.
        share: of its part of the weights as they are stored, each part once: copies, on several of its devices or of KV
            heads, are read once.
        held: on its devices.
        staging: most host memory beside what its devices hold. Devices that share the host's memory take over buffers.
    """

    read: int
    requests: int
    share: float
    held: int
    staging: int


def load_plan(
    tensors: NamedTensors,
    config: ModelConfig,
    layout: Layout,
    dtype: DTypeLike,
    *,
    positions: Iterable[int],
    source: str = "checkpoint",
) -> LoadPlan:
    """What a process with some devices of a layout does to load its part; reads nothing.

    Args:
        tensors: of the checkpoint.
        config, layout, dtype: as check_layout has accepted them.
        positions: of its devices among those of the layout.
        source: file or folder, for errors.

    Raises:
        CheckpointError: the tensors do not fit the configuration.
    """
    where = arranged(config, layout, dtype)
    positions = tuple(positions)
    read = requests = held = staging = 0
    share = 0.0
    for leaf in leaf_plans(tensors, config, dtype=dtype, source=source):
        each = where[leaf.spec.path]
        boxes = stored_boxes(each, leaf.spec.shape, layout, positions)
        whole = [(0, size) for size in leaf.spec.shape]
        stored = leaf.cost([tuple(whole)]).wanted / prod(leaf.spec.shape)
        share += stored * sum(map(volume, boxes))
        held += each.num_bytes * len(positions)
        groups = [[box] for box in boxes] if tensors.local else [boxes]
        for group in groups:
            cost = leaf.cost(group)
            read += cost.read
            requests += cost.requests
            buffers = leaf.spec.dtype.itemsize * sum(map(volume, group))
            staging = max(staging, buffers + leaf.staging(group))
    return LoadPlan(read, requests, share, held, staging)


def split_for(layout: Layout, devices: Sequence[Any], dtype: DTypeLike = "bfloat16") -> Split:
    """How to write a checkpoint whose chunks end where the parts of a layout end.

    Leaves keep the checkpoint's form, without copies or padding, so that any other layout reads them too. KV heads held
    several times are cut into single ones; a vocabulary that does not divide is cut by size alone.

    Args:
        layout: of one replica.
        devices: to hold the parts, as many as the layout has, virtual ones of this machine for instance.
        dtype: in which the layout is checked.
    """

    def of(config: ModelConfig) -> Callable[[WeightSpec], NamedSharding]:
        check_layout(layout, config, Devices(len(devices)), dtype=dtype)
        where = arranged(config, layout, dtype)

        def place(spec: WeightSpec) -> NamedSharding:
            parts = tuple(
                gcd(size, layout.size(axes)) for size, axes in zip(spec.shape, where[spec.path].axes, strict=True)
            )
            names = tuple(f"axis{i}" for i in range(len(parts)))
            mesh = Mesh(np.array(devices[: prod(parts)]).reshape(parts), names)
            return NamedSharding(mesh, PartitionSpec(*names))

        return place

    return Split(str(layout), of)


def stored_boxes(leaf: Arranged, shape: tuple[int, ...], layout: Layout, positions: Sequence[int]) -> list[Box]:
    """The distinct boxes of a stored leaf that some devices need."""
    bounds = dict.fromkeys(leaf.bounds(position, layout) for position in positions)
    return list(dict.fromkeys(stored_box(shape, leaf.repeats, each) for each in bounds))


def staging_bytes(config: ModelConfig, layout: Layout, dtype: DTypeLike) -> int:
    """Most host memory for loading from local files, beside what devices hold, where no row of a tensor is longer than
    a block: the largest part of a leaf, and what is read at once. Twice that part where copies are made of it."""
    leaves = arranged(config, layout, dtype)
    specs = weight_specs(config, dtype)
    parts = (leaf.num_bytes * (1 if leaf.shape == specs[path].shape else 2) for path, leaf in leaves.items())
    return max(parts) + STAGED * BLOCK_BYTES
