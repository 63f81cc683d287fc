"""Names of topologies."""

from pathlib import Path

import pytest

from distaff.backends.compiler.errors import CompilerNotFoundError, UnknownTopologyError
from distaff.backends.compiler.topologies import parse_topology, topology_devices
from distaff.backends.errors import UsageError


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


def test_gpus_fill_hosts_of_eight() -> None:
    pytest.importorskip("jax_cuda12_plugin", reason="the compiler for NVIDIA GPUs is in the extra `aot-cuda`")
    assert [len(topology_devices(name)) for name in ("h100:1", "h100:8", "h100:2x8")] == [1, 8, 16]
    with pytest.raises(UnknownTopologyError, match="full hosts"):
        topology_devices("h100:12")
    with pytest.raises(UsageError, match="only TPUs come in slices"):
        topology_devices("h100:8", num_slices=2)


def test_a_compiler_that_was_not_made_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTAFF_ROCM_COMPILER", str(tmp_path / "nothing"))
    with pytest.raises(
        CompilerNotFoundError, match=r"nothing holds no compiler.*python -m distaff.backends.compiler.rocm"
    ):
        topology_devices("mi300x:8")


def test_chips_without_a_description_are_refused() -> None:
    with pytest.raises(UnknownTopologyError, match="backends/targets describes no b200"):
        topology_devices("b200:8")
