"""Slices: how chips stand, which wrap around, and which there are."""

import pytest

from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.topologies import topology_devices
from distaff.sharding.sweep.errors import SweepError
from distaff.sharding.sweep.slices import parse_slice


def test_wrapping_is_for_whole_axes() -> None:
    assert parse_slice("v5e:16x16").wraps(0) and not parse_slice("v5e:8x16").wraps(0)
    assert parse_slice("v5e:8x16").wraps(1)
    assert parse_slice("v5p:4x4x4").wraps(2) and not parse_slice("v5p:2x4x4").wraps(2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e:3x5", "no v5e slice is 3 chips long"),
        ("v5e:2x2x2", "v5e slices have 2 axes"),
        ("v4:4", "v4 slices have 3 axes, such as 2x2x4"),
        ("h100:16", "links join 8 h100"),
        ("h100:4*2", "only TPUs come in slices"),
        ("v6e", "name chips and how they stand"),
        ("v5e:0x4", "no chips"),
    ],
)
def test_impossible_topologies_are_refused(text: str, says: str) -> None:
    with pytest.raises(SweepError, match=says.replace("(", "\\(")):
        parse_slice(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:2x4", "v6e:8x8", "v5p:2x2x4", "v4:2x4x4", "tpu7x:2x2x2"])
def test_devices_stand_as_the_compiler_numbers_them(name: str) -> None:
    on = parse_slice(name)
    try:
        devices = topology_devices(on.topology)
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    axes = len(on.shape)
    assert [(device.core_on_chip, *device.coords[:axes]) for device in devices] == [
        place[1:] for place in on.coordinates
    ]
