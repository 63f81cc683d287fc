"""Reading the TPU compiler's schedules. The dumps are those of a kernel that adds two f32[1024, 256] in a grid of 8
for v6e (libtpu 0.0.52), their comments shortened."""

from pathlib import Path

import pytest

from distaff.backends.compiler.bundles import DELAY_SLOTS, UNITS, Loop, Region, Schedule, parse_schedule

DUMPS = Path(__file__).parent / "dumps"


@pytest.fixture
def add() -> Schedule:
    return parse_schedule(
        (DUMPS / "add-packed-bundles-post-ra.txt").read_text(), (DUMPS / "add-utilization.txt").read_text()
    )


def test_every_cycle_is_a_bundle(add: Schedule) -> None:
    assert len(add.bundles) == len(add.busy) == 0x8E + 1
    assert dict(zip(UNITS, add.capacity, strict=True)) == dict(
        matmul=2, matpush=2, xlu=2, valu=4, vpop=2, eup=1, vload=3, fill=3, vstore=2, spill=2, salu=2
    )


def test_the_grid_is_a_loop_with_two_steps_more_for_its_pipeline(add: Schedule) -> None:
    assert add.loops == (Loop(start=0x7, end=0x84 + 1 + DELAY_SLOTS, depth=0, trip_count=8 + 2),)


def test_a_skipped_region_begins_behind_the_delay_slots_of_its_branch(add: Schedule) -> None:
    assert add.regions == (Region(start=0x49 + 1 + DELAY_SLOTS, end=0x7A, predicate="%p1014_p1"),)


def test_work_of_the_body(add: Schedule) -> None:
    stores = sum(row[UNITS.index("vstore")] for row in add.busy)
    loads = sum(row[UNITS.index("vload")] for row in add.busy)
    assert stores == 128 * 256 // (8 * 128)  # the tiles of one block
    assert loads >= 2 * stores


def test_a_loop_inside_a_loop_without_a_literal_bound() -> None:
    lines = ["{}"] * 20
    lines[9] = "{ %p3_p0 = scmp.ge.s32.totalorder %s1_s0, %s7_s2 }"
    lines[10] = "{ %4 = sbr.rel (!%p3_p0) target bundleno = 5 (0x5), region = 2 }"
    lines[14] = "{ %p8_p1 = scmp.ge.s32.totalorder %s5_s3, 6  ;;  %9 = sbr.rel (!%p8_p1) target bundleno = 1 (0x1) }"
    bundles = "\n".join(f"{place:#6x}   : {text}" for place, text in enumerate(lines))
    rows = "\n".join("0 " * len(UNITS) for _ in lines)
    names = ", ".join(UNITS)
    schedule = parse_schedule(bundles, f"== CAPACITY:\n{names}\n{'1 ' * len(UNITS)}\n== UTILIZATION:\n{rows}\n")
    assert schedule.loops == (Loop(1, 19, 0, 6), Loop(5, 15, 1, None))


def test_dumps_of_different_kernels_are_refused(add: Schedule) -> None:
    utilization = (DUMPS / "add-utilization.txt").read_text()
    with pytest.raises(ValueError, match="143 bundles but 142 rows"):
        parse_schedule("\n".join(add.bundles), utilization.rstrip().rpartition("\n")[0])
    with pytest.raises(ValueError, match="expected a table of the 11 units"):
        parse_schedule("\n".join(add.bundles), "")
