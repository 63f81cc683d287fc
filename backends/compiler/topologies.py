"""Names of accelerators that are not attached: "v6e:2x2" is four v6e chips, two by two; "h100:8" a host of eight."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from ..errors import UnsupportedError, UsageError
from ..hardware import Chip, chip, chips, xla_target
from .errors import CompilerNotFoundError, UnknownTopologyError
from .gpu import gpu_compiler_version, gpu_devices
from .libtpu import libtpu_environment, libtpu_version

EXAMPLES = "v5e:2x4, v6e:4x4, v5p:2x2x4, tpu7x:2x2x1, v4:2x2x2, h100:8, mi300x:8"
_NAME = re.compile(r"(?P<chip>[a-z0-9]+):(?P<shape>\d+(x\d+)*)")


@dataclass(frozen=True)
class Topology:
    """A chip and how many of them stand beside each other along each axis."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return prod(self.shape)


def parse_topology(text: str) -> Topology:
    """Reads "v6e:2x2"; v7x is another name of tpu7x.

    Raises:
        UnknownTopologyError: no such chip, or not of that form.
    """
    found = _NAME.fullmatch(text)
    try:
        if found and 0 not in (shape := tuple(map(int, found["shape"].split("x")))):
            return Topology(chip(found["chip"]), shape)
    except UnsupportedError:
        pass
    raise UnknownTopologyError(
        f"topology {text!r} is not known: name a topology such as {EXAMPLES} "
        f"(a chip, {', '.join(chips())}, and how many of them along each axis)"
    )


def compiler_of(topology: Topology) -> str:
    """Name and version of the compiler for a topology.

    Raises:
        CompilerNotFoundError: it is not installed.
    """
    if topology.chip.platform == "tpu":
        return f"libtpu {libtpu_version()}"
    return f"XLA for {topology.chip.platform} {gpu_compiler_version(topology.chip.platform)}"


def topology_devices(topology: str, *, num_slices: int = 1) -> Sequence[Any]:
    """The devices of a topology, for meshes to compile for.

    Args:
        topology: as for parse_topology.
        num_slices: how many such slices of TPUs, connected by the data-centre network.

    Raises:
        UnknownTopologyError: the compiler does not know the topology.
        CompilerNotFoundError: the compiler is not installed.
        UsageError: slices of something else than TPUs.
    """
    described = parse_topology(topology)
    if described.chip.platform != "tpu":
        if num_slices > 1:
            raise UsageError(f"{topology}: only TPUs come in slices; name more GPUs instead")
        target = xla_target(described.chip.name)
        if target is None:
            raise UnknownTopologyError(f"topology {topology!r}: backends/targets describes no {described.chip.name}")
        return gpu_devices(described.chip.name, described.chip.platform, target, described.num_chips)
    options = {"num_slices": num_slices} if num_slices > 1 else {}
    with libtpu_environment():
        try:
            return list(topologies.get_topology_desc(described.name, platform="tpu", **options).devices)
        except JaxRuntimeError as error:
            raise UnknownTopologyError(
                f"topology {topology!r} is not known to the TPU compiler ({error}): name a topology such as {EXAMPLES}"
            ) from error
        except (RuntimeError, OSError) as error:
            raise CompilerNotFoundError(f"the TPU compiler does not load ({error})") from error
