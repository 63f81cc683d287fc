"""What collectives take, on rings, lines, boxes and between slices."""

import pytest

from distaff.backends.hardware import chip
from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.links import Links, Side, torus_cost
from distaff.sharding.sweep.slices import parse_slice


def test_links_of_a_torus() -> None:
    """A ring sends both ways, a line one way; a second axis has links of its own; an all-reduce is two gathers."""
    rate = 5e10
    ring, line = Side(16, 1, True), Side(4, 1, False)
    assert torus_cost("all-gather", [ring], rate).seconds_per_byte == 1 / (2 * rate)
    assert torus_cost("all-gather", [line], rate).seconds_per_byte == pytest.approx(3 / 4 / rate)
    assert torus_cost("all-reduce", [ring, ring], rate).seconds_per_byte == 2 / (4 * rate)
    assert torus_cost("all-to-all", [ring], rate).seconds_per_byte == 16 / 4 / (2 * rate)
    assert (torus_cost("all-gather", [ring], rate).hops, torus_cost("all-reduce", [line], rate).hops) == (8, 6)


def test_what_all_send_to_all_goes_through_the_narrowest_cut() -> None:
    """4 x 4 chips in lines: 8 of them hold 8 parts, half of each of which goes over 4 links: one part's time."""
    line = Side(4, 1, False)
    assert torus_cost("all-to-all", [line, line], 5e10).seconds_per_byte == pytest.approx(1 / 5e10)
    assert torus_cost("all-to-all", [Side(16, 1, True), Side(2, 1, False)], 5e10).seconds_per_byte == 2 / 5e10


def test_a_mesh_lies_on_hosts_of_two_by_two() -> None:
    """As libtpu numbers devices: the first four are a block; the fourth of each host are two chips apart."""
    assert [place[2:] for place in parse_slice("v5e:4x4").coordinates[:6]] == [
        (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0)
    ]  # fmt: skip
    links = Links(parse_slice("v5e:4x4"), parse_layout("data=4,tensor=4", num_devices=16))
    rate = chip("v5e").link_bytes_per_second
    assert rate is not None
    assert links.cost("all-gather", ("tensor",)).seconds_per_byte == pytest.approx(3 / 4 / (2 * rate))
    assert links.cost("all-gather", ("data",)).seconds_per_byte == pytest.approx(3 / 4 / (2 * rate / 2))


def test_what_goes_between_slices_takes_the_network_of_each_chip() -> None:
    on = parse_slice("v5e:2x2*2")
    links = Links(on, parse_layout("data=2,tensor=4", num_devices=8))
    assert links.cost("all-gather", ("tensor",)).dcn_seconds_per_byte == 0
    assert links.cost("all-gather", ("data",)).dcn_seconds_per_byte == pytest.approx(0.5 / 3.125e9)
