"""Weighing a schedule: cycles worked out by hand from a program of a few bundles."""

import pytest

from distaff.backends.compiler.bundles import UNITS, Loop, Region, Schedule
from distaff.backends.compiler.kernel_cost import kernel_report
from distaff.backends.hardware import chip
from distaff.backends.kernel_work import KernelWork


def _schedule() -> Schedule:
    """20 bundles: an outer loop 2..18 of 3 trips, inside it a loop 4..10 whose trips depend on data, and a region
    12..16 that can be skipped. Bundle 4 stores a spilled register, bundles 5 and 6 occupy both matrix units."""
    idle = dict.fromkeys(UNITS, 0)
    rows = [tuple(idle.values())] * 20
    rows[4] = tuple({**idle, "spill": 1, "vstore": 1}.values())
    rows[5] = rows[6] = tuple({**idle, "matmul": 2}.values())
    bundles = ["{}"] * 20
    bundles[7] = "{ %1 = dma.hbm_to_vmem [thread:$0] %s0, /*size_in_granules=*/64, %s1 }"
    bundles[8] = "{ %2 = dma.vmem_to_hbm [thread:$0] %s0, /*size_in_granules=*/%s9_s3, %s1 }"
    return Schedule(
        bundles=tuple(bundles),
        busy=tuple(rows),
        capacity=tuple({**dict.fromkeys(UNITS, 1), "matmul": 2}.values()),
        loops=(Loop(2, 18, 0, 3), Loop(4, 10, 1, None)),
        regions=(Region(12, 16, "%p0"),),
    )


def test_unknown_loops_run_once_and_regions_always() -> None:
    report = kernel_report("k.1", _schedule(), chip("v6e"))
    assert report.cycles == 4 + 3 * 16
    assert [loop.known for loop in report.loops] == [True, False]
    assert report.spill_stores == 3
    assert report.mxu_busy == pytest.approx(2 * 3 / 52)
    assert report.hbm_seconds is None and report.seconds == report.compute_seconds


def test_work_says_how_often_things_run() -> None:
    work = KernelWork(trips={1: 5.5}, conditions={0: 0.25}, hbm_bytes=1638, flops=7)
    report = kernel_report("k.1", _schedule(), chip("v6e"), work, calls=4, vmem_bytes=123)
    outer, inner = report.loops
    assert report.cycles == 4 + 3 * (16 - 6 - 4) + 3 * 5.5 * 6 + 3 * 0.25 * 4
    assert (outer.bundles, inner.bundles) == (10, 6)
    assert outer.cycles + inner.cycles + 4 == report.cycles
    assert report.hot_loop == inner
    assert inner.slots["matmul"] == pytest.approx(2 / 6)
    assert inner.dma_bytes == (64 * 32, None)
    assert report.hbm_seconds == pytest.approx(1e-9)
    assert report.compute_seconds == pytest.approx(report.cycles / 1.75e9)
    assert (report.calls, report.vmem_bytes, report.flops, report.regions[0].weight) == (4, 123, 7, 0.25)


def test_a_hint_goes_before_the_compilers_literal() -> None:
    assert kernel_report("k", _schedule(), chip("v6e"), KernelWork(trips={0: 1})).cycles == 20


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (KernelWork(trips={2: 1}), "k.1: its KernelWork names loop 2, the program has 2 of them"),
        (KernelWork(conditions={1: 1}), "names conditional region 1, the program has 1 of them"),
    ],
)
def test_hints_for_what_is_not_there_are_refused(work: KernelWork, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_report("k.1", _schedule(), chip("v6e"), work)
