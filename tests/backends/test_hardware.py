"""Figures of chips: complete, consistent with each other, and what the compiler assumes of its own targets."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from distaff.backends.compiler.bundles import UNITS, parse_schedule
from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.backends.hardware import Chip, chip, chips, read_chips, with_figures

TPUS = [found for found in chips().values() if found.platform == "tpu"]


FIGURES = (
    "flops",
    "hbm_bytes",
    "hbm_bytes_per_second",
    "on_chip_bytes",
    "links",
    "link_bytes_per_second",
    "dcn_bytes_per_second",
    "watts",
    "dollars_per_hour",
)


def test_the_table_has_the_chips_that_people_choose_from() -> None:
    named = "v4 v5e v5p v6e tpu7x a100 h100 h200 b200 mi300x mi325x mi355x gaudi2 gaudi3 wse3"
    assert list(chips()) == named.split()


@pytest.mark.parametrize("row", chips().values(), ids=lambda row: row.name)
def test_every_figure_is_dated_and_sourced(row: Chip) -> None:
    for figure in FIGURES:
        assert bool(getattr(row, figure)) == (figure in row.sources), figure
    for source in row.sources.values():
        assert re.fullmatch(r"20\d\d-\d\d", source.read) and source.page.startswith("https://")


def test_peaks_are_dense() -> None:
    """Twice as fast in 8 bits as in 16 at most: pages that quote sparse peaks have four times."""
    for row in chips().values():
        for dtype, flops in row.flops.items():
            assert flops <= 2.02 * row.flops["bfloat16"], (row.name, dtype)


def test_power_of_tpus_that_google_does_not_publish_is_not_invented() -> None:
    assert [tpu.name for tpu in TPUS if tpu.watts is not None] == ["v4"]


def test_a_file_adds_chips_and_changes_figures(tmp_path: Path) -> None:
    path = tmp_path / "chips.yaml"
    path.write_text(
        "sources: {mine: {page: 'https://example.org', read: 2026-01}}\n"
        "chips:\n"
        "  v6e: {watts: 300, from: {mine: [watts]}}\n"
        "  abacus: {maker: Me, platform: cpu, devices_per_chip: 1, flops: {bfloat16: 1.0}, hbm_bytes: 8,\n"
        "           hbm_bytes_per_second: 2.0}\n"
    )
    table = read_chips(path)
    assert table["v6e"].watts == 300 and table["v6e"].sources["watts"].page == "https://example.org"
    assert table["v6e"].flops == chip("v6e").flops and chip("v6e").watts is None
    assert chip("abacus", table).device_flops() == 1.0
    path.write_text("chips: {abacus: {maker: Me}}\n")
    with pytest.raises(InvalidParameterError, match="the file of chips is .* of the form of backends/hardware.yaml"):
        read_chips(path)


def test_figures_are_given_as_text() -> None:
    table = with_figures(chips(), ["v7x.watts=700"])
    assert table["tpu7x"].watts == 700 and table["tpu7x"].sources["watts"].page == "given by the user"
    assert with_figures(table, ["v5e=0.6"], figure="dollars_per_hour")["v5e"].dollars_per_hour == 0.6
    for wrong in ("v5e.wings=2", "v5e.watts=much", "v5e.watts=-1", "v5e.watts"):
        with pytest.raises(InvalidParameterError, match="expected CHIP.FIGURE=NUMBER"):
            with_figures(chips(), [wrong])


@pytest.mark.parametrize("tpu", TPUS, ids=lambda tpu: tpu.name)
def test_the_peak_of_a_tpu_is_clock_times_multipliers(tpu: Chip) -> None:
    assert tpu.matrix_units is not None and tpu.matrix_unit_edge is not None and tpu.matrix_unit_rows is not None
    peak = tpu.clock_hertz * tpu.matrix_units * tpu.matrix_unit_rows * 2 * tpu.matrix_unit_edge**2
    assert tpu.flops["bfloat16"] == pytest.approx(peak, rel=0.01)


def test_a_device_can_be_half_a_chip() -> None:
    ironwood = chip("v7x")
    assert ironwood is chip("tpu7x")
    assert ironwood.device_flops() == pytest.approx(1153.5e12)
    assert ironwood.device_flops("float8_e4m3fn") == pytest.approx(2307e12)
    assert ironwood.device_hbm_bytes == 96 * 2**30
    assert ironwood.device_hbm_bytes_per_second == pytest.approx(3.69e12)


def test_a_dtype_without_units_of_its_own_runs_as_bfloat16() -> None:
    assert chip("tpu7x").device_flops("int8") == chip("tpu7x").device_flops()
    assert chip("v6e").device_flops("int8") == 2 * chip("v6e").device_flops()


@pytest.mark.parametrize("name", ["h100", "mi300x"])
def test_targets_of_the_compiler_agree_with_the_table(name: str) -> None:
    target = (files("distaff.backends") / "targets" / f"{name}.txtpb").read_text()
    fields = dict(re.findall(r"^  (\w+): ([\d.]+)$", target, re.MULTILINE))
    assert float(fields["memory_bandwidth"]) == pytest.approx(chip(name).hbm_bytes_per_second, rel=0.01)
    assert float(fields["clock_rate_ghz"]) * 1e9 == pytest.approx(chip(name).clock_hertz)
    assert float(fields["device_memory_size"]) <= chip(name).hbm_bytes


def test_a_schedule_has_as_many_matrix_units_as_a_core() -> None:
    """The dump of a kernel for v6e, whose chips have one core."""
    dumps = Path(__file__).parent / "compiler" / "dumps"
    schedule = parse_schedule(
        (dumps / "add-packed-bundles-post-ra.txt").read_text(), (dumps / "add-utilization.txt").read_text()
    )
    assert schedule.capacity[UNITS.index("matmul")] == chip("v6e").matrix_units


def test_an_unknown_chip_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="chip 'v99' is not in the hardware table, which has v4, v5e"):
        chip("v99")
