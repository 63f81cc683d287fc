"""From a function to a program for a mesh of devices that are not attached."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled, Lowered

from ..base import PyTree
from ..errors import UsageError
from .errors import classify
from .topologies import topology_devices


def make_mesh(topology: str, axes: Mapping[str, int] | None = None, *, num_slices: int = 1) -> Mesh:
    """The first devices of a topology as a mesh of these axes and sizes; without axes, its first device.

    Raises:
        UsageError: the topology has fewer devices.
    """
    devices = topology_devices(topology, num_slices=num_slices)
    sizes = axes or {"device": 1}
    count = prod(sizes.values())
    if count > len(devices):
        shape = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise UsageError(f"a mesh of {shape} takes {count} devices, {topology} has {len(devices)}")
    return Mesh(np.array(devices[:count]).reshape(tuple(sizes.values())), tuple(sizes))


def lower(
    function: Callable[..., PyTree],
    abstract_args: Sequence[PyTree],
    mesh: Mesh,
    *,
    in_specs: Sequence[PyTree] | None = None,
    donate: Sequence[int] = (),
) -> Lowered:
    """Traces a function into StableHLO for a mesh.

    Args:
        function: what to compile.
        abstract_args: arguments; only shapes and types are read.
        mesh: of devices of a topology.
        in_specs: for each argument a PartitionSpec, or a tree of them; None replicates.
        donate: numbers of the arguments that the call consumes.
    """
    specs = [None] * len(abstract_args) if in_specs is None else in_specs
    args = [_placed(argument, spec, mesh) for argument, spec in zip(abstract_args, specs, strict=True)]
    # Pallas asks the ambient mesh which generation it compiles for.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function, donate_argnums=tuple(donate)).lower(*args)


def compile_lowered(lowered: Lowered, topology: str, options: Mapping[str, Any] | None = None) -> Compiled:
    """Compiles with the compiler of the topology.

    Raises:
        CompileError: the compiler refuses the program; the class says what for.
    """
    with warnings.catch_warnings():
        # A program for a chip that is not here cannot be read back from JAX's compilation cache.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        try:
            return lowered.compile(compiler_options=dict(options or {}))
        except JaxRuntimeError as error:
            raise classify(topology, str(error)) from error


def _placed(argument: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    def place(spec: PartitionSpec | None, part: PyTree) -> PyTree:
        sharding = NamedSharding(mesh, spec or PartitionSpec())
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

    return jax.tree.map(place, specs, argument, is_leaf=lambda spec: spec is None or isinstance(spec, PartitionSpec))
