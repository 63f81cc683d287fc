"""Programs over the devices of several hosts: each gives its devices their part of every argument, and sees all of what
a step tells, wherever it lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..backends.base import Program, PyTree


def spans_hosts(mesh: Mesh) -> bool:
    """Whether some of its devices are another process's."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


@dataclass(frozen=True)
class SpreadProgram:
    """A program of all hosts, to be called on each with the same arrays.

    Args:
        program: takes arrays of the abstract arguments.
        arguments: those, with the sharding of each leaf.
        told: makes the first output whole on every device; None: nobody looks at outputs.
    """

    program: Program
    arguments: Sequence[PyTree]
    told: Program | None = None

    def __call__(self, *arguments: PyTree) -> PyTree:
        outputs = self.program(*jax.tree.map(_spread, tuple(arguments), tuple(self.arguments)))
        return outputs if self.told is None else (self.told(outputs[0]), *outputs[1:])

    def as_text(self) -> str | None:
        return self.program.as_text()

    def memory_analysis(self) -> Any:
        return self.program.memory_analysis()


def tell_everybody(mesh: Mesh, outputs: PyTree) -> Program | None:
    """A program that makes outputs whole on every device; None if they are.

    Args:
        mesh: of all hosts.
        outputs: shapes, with the sharding of each leaf.
    """
    if all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(outputs)):
        return None
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda tree: tree, out_shardings=whole).lower(outputs).compile()


def _spread(given: Any, wanted: jax.ShapeDtypeStruct) -> Any:
    """This host's part of an array that every host has; of arrays that lie on all hosts already nothing changes."""
    sharding = wanted.sharding
    assert sharding is not None
    if sharding.is_fully_replicated or (isinstance(given, jax.Array) and not given.is_fully_addressable):
        return given
    whole = np.asarray(given)
    return jax.make_array_from_callback(wanted.shape, sharding, lambda part: whole[part])
