"""Names of accelerators that are not attached: "v6e:2x2" is four v6e chips, two by two."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from .compiler.errors import CompilerNotFoundError, UnknownTopologyError
from .compiler.libtpu import libtpu_environment
from .errors import UnsupportedError
from .hardware import Chip, chip, chips

EXAMPLES = "v5e:2x4, v6e:4x4, v5p:2x2x4, tpu7x:2x2x1, v4:2x2x2"
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
        if found:
            return Topology(chip(found["chip"]), tuple(map(int, found["shape"].split("x"))))
    except UnsupportedError:
        pass
    raise UnknownTopologyError(
        f"topology {text!r} is not known: name a topology such as {EXAMPLES} "
        f"(a chip, {', '.join(chips())}, and how many of them along each axis)"
    )


def topology_devices(topology: str, *, num_slices: int = 1) -> Sequence[Any]:
    """The devices of a topology, for meshes to compile for.

    Args:
        topology: as for parse_topology.
        num_slices: how many such slices, connected by the data-centre network.

    Raises:
        UnknownTopologyError: the compiler does not know the topology.
        CompilerNotFoundError: the compiler is not installed.
    """
    described = parse_topology(topology)
    with libtpu_environment():
        try:
            options = {"num_slices": num_slices} if num_slices > 1 else {}
            return list(topologies.get_topology_desc(described.name, platform="tpu", **options).devices)
        except JaxRuntimeError as error:
            raise UnknownTopologyError(
                f"topology {topology!r} is not known to the TPU compiler ({error}): name a topology such as {EXAMPLES}"
            ) from error
        except (RuntimeError, OSError) as error:
            raise CompilerNotFoundError(f"the TPU compiler does not load ({error})") from error
