"""A chip's backend under a layout: on the devices that there are, or on those of processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..backends.base import Backend
from ..backends.processes import OfProcesses
from ..backends.quantized import Rounding
from ..models.config import ModelConfig
from .backend import ShardedBackend
from .check import Devices, check_layout, choose_layout, lying_whole
from .layout import Layout
from .mesh import make_mesh
from .parsing import parse_layout
from .ranked import RankedBackend, check_processes
from .remarks import remarks_on


def shard_backends(
    inner: Backend,
    config: ModelConfig,
    layout: str,
    dtype: DTypeLike,
    *,
    one_program: bool = False,
    roundings: Mapping[str, Rounding] | None = None,
    expandable: bool = False,
) -> tuple[ShardedBackend, ...]:
    """The first devices of this process under a layout: a backend for each replica, each on devices of its own; where
    devices are processes, a single one for this process.

    Args:
        one_program: a single backend instead, for all replicas together; replicas that share weights have no other.
        inner: the backend of one device.
        config, dtype: the model's.
        layout: as parse_layout reads it, or "auto": replicas as small as memory allows.
        roundings: of the weights that come as Quantized, by their paths.
        expandable: whether those may come as floats instead of which groups would lie on several devices.

    Raises:
        LayoutError: it is no layout, or does not fit.
        UsageError: devices are processes, and there are none.
    """
    if isinstance(inner, OfProcesses):
        check_processes(inner, layout)
    memory, all_devices = inner.memory(), jax.devices()
    devices, rounding = Devices(len(all_devices), None if memory.shared else memory.total), roundings or {}
    if layout == "auto":
        chosen = choose_layout(config, devices, dtype=dtype, roundings=rounding)
    else:
        chosen = parse_layout(layout, num_devices=devices.count)
        if expandable:
            rounding = lying_whole(chosen, config, dtype, rounding)
        check_layout(chosen, config, devices, dtype=dtype, roundings=rounding)
    remarks = remarks_on(chosen, config, devices, dtype=dtype)

    def on(layout: Layout, devices: Sequence[Any]) -> ShardedBackend:
        return ShardedBackend(
            inner, config, jnp.dtype(dtype), layout, make_mesh(layout, devices), remarks, rounding
        )  # fmt: skip

    if isinstance(inner, OfProcesses):
        rank, mesh = jax.process_index(), make_mesh(chosen, all_devices)
        part = inner.among(tuple(mesh.shape.items()), rank)
        return (RankedBackend(part, config, jnp.dtype(dtype), chosen, mesh, remarks, rounding, rank=rank),)
    if one_program or chosen.coupled:
        return (on(chosen, all_devices),)
    one, size = chosen.replica, chosen.replica.num_devices
    return tuple(on(one, all_devices[number * size :]) for number in range(chosen.replicas))
