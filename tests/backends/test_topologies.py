"""Names of topologies."""

import pytest

from distaff.backends.compiler.errors import UnknownTopologyError
from distaff.backends.topologies import parse_topology, topology_devices


def test_names() -> None:
    topology = parse_topology("v7x:2x2x1")
    assert (topology.name, topology.shape, topology.num_chips) == ("tpu7x:2x2x1", (2, 2, 1), 4)


@pytest.mark.parametrize("name", ["v99:2x2", "v6e", "v6e:", "v6e:2x", "v6e:axb", "", "V6E:2x2"])
def test_an_unknown_topology_says_what_is_known(name: str) -> None:
    with pytest.raises(UnknownTopologyError, match=rf"topology '{name}' is not known.*such as v5e:2x4.*v4, v5e, v5p"):
        parse_topology(name)


@pytest.mark.parametrize(
    ("name", "num_devices"),
    [("v5e:2x4", 8), ("v6e:4x4", 16), ("v5p:2x2x4", 16), ("tpu7x:2x2x1", 8), ("v4:2x2x2", 16)],
)
def test_devices(name: str, num_devices: int) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    topology = parse_topology(name)
    devices = topology_devices(name)
    assert len(devices) == num_devices == topology.num_chips * topology.chip.devices_per_chip


def test_a_shape_that_cannot_be_built_is_refused_with_the_compilers_reason() -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    with pytest.raises(UnknownTopologyError, match="v5e:3x5.*not divisible"):
        topology_devices("v5e:3x5")
