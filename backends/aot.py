"""Compiles for an accelerator that is not attached, with the compiler that will serve it there."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .base import Program, PyTree
from .errors import DistaffError

_LIBTPU_ENVIRONMENT = {
    # Without these libtpu asks the cloud's metadata server for a machine, and refuses a second process its lock.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class CompilerNotFoundError(DistaffError):
    """The compiler for a kind of accelerator is not installed."""


def topology_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU topology such as "v6e:2x2".

    Raises:
        CompilerNotFoundError: libtpu is missing, or does not know the topology.
    """
    for name, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    except Exception as error:
        raise CompilerNotFoundError(
            f"topology {topology!r}: the TPU compiler cannot describe it ({error}); "
            "install Distaff with its extra `tpu`, and name a topology such as v5e:2x4 or v6e:2x2"
        ) from error


def compile_ahead(
    function: Callable[..., PyTree], abstract_args: Sequence[PyTree], topology: str, *, donate: Sequence[int] = ()
) -> Program:
    """Compiles a function for the first device of a topology.

    Args:
        function: what to compile.
        abstract_args: arguments; only shapes and types are read.
        topology: as for topology_devices.
        donate: numbers of the arguments that the call consumes.
    """
    mesh = Mesh(np.array(topology_devices(topology)[:1]), ("device",))
    whole = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tuple(abstract_args))
    # Pallas asks the ambient mesh which generation it compiles for.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), warnings.catch_warnings():
        # A program for a chip that is not here cannot be read back from JAX's compilation cache.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        return jax.jit(function, donate_argnums=tuple(donate)).lower(*args).compile()
