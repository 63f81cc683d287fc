"""Figures of chips: complete, consistent with each other, and what the compiler assumes of its own targets."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from distaff.backends.compiler.bundles import UNITS, parse_schedule
from distaff.backends.errors import UnsupportedError
from distaff.backends.hardware import Chip, chip, chips

TPUS = [found for found in chips().values() if found.platform == "tpu"]


def test_every_row_is_dated_and_sourced() -> None:
    for row in chips().values():
        assert re.fullmatch(r"20\d\d-\d\d", row.as_of), row.name
        assert row.sources and all(source.startswith("https://") for source in row.sources), row.name
        assert row.flops["bfloat16"] > 0 and row.hbm_bytes_per_second > 0 and row.hbm_bytes > 0


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
