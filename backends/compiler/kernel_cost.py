"""Static cycles of one kernel: its schedule, weighted by how often each part of it runs."""

import re
from collections.abc import Sequence

from ..hardware import Chip
from ..kernel_work import KernelWork
from .bundles import UNITS, Loop, Schedule
from .report import KernelReport, LoopReport, RegionReport

_DMA = re.compile(r"= dma\.\w+[^;]*?/\*size_in_granules=\*/\s*([%\w]+)")
_GRANULE_BYTES = 32


def kernel_report(
    name: str,
    schedule: Schedule,
    chip: Chip,
    work: KernelWork | None = None,
    *,
    calls: int = 1,
    vmem_bytes: int | None = None,
) -> KernelReport:
    """Cycles and occupancy of one call of a kernel.

    A bundle runs (trips of the loops around it) x (weights of the regions around it) times. Trip counts are
    those of `work` where it names the loop, else the compiler's where it knows them, else 1; regions run always unless
    `work` says otherwise.

    Raises:
        ValueError: `work` names a loop or a region that the program does not have.
    """
    trips, weights = _hints(name, schedule, work or KernelWork())
    times = [1.0] * len(schedule.bundles)
    innermost = [-1] * len(schedule.bundles)
    for number, loop in enumerate(schedule.loops):
        for place in range(loop.start, loop.end):
            times[place] *= trips[number]
            innermost[place] = number
    for region, weight in zip(schedule.regions, weights, strict=True):
        for place in range(region.start, region.end):
            times[place] *= weight
    cycles = sum(times)
    return KernelReport(
        name=name,
        calls=calls,
        bundles=len(schedule.bundles),
        cycles=cycles,
        slots=_slots(schedule, range(len(times)), times),
        spill_stores=_occupied(schedule, "spill", times),
        spill_fills=_occupied(schedule, "fill", times),
        vmem_bytes=vmem_bytes,
        loops=tuple(
            _loop_report(
                schedule, loop, trips[number], [p for p, inner in enumerate(innermost) if inner == number], times
            )
            for number, loop in enumerate(schedule.loops)
        ),
        regions=tuple(
            RegionReport(region.start, region.end, weight)
            for region, weight in zip(schedule.regions, weights, strict=True)
        ),
        compute_seconds=cycles / chip.clock_hertz,
        hbm_bytes=work.hbm_bytes if work else None,
        flops=work.flops if work else None,
        hbm_seconds=work.hbm_bytes / chip.device_hbm_bytes_per_second if work else None,
    )


def _hints(name: str, schedule: Schedule, work: KernelWork) -> tuple[list[float], list[float]]:
    for kind, hints, present in (
        ("loop", work.trips, len(schedule.loops)),
        ("conditional region", work.conditions, len(schedule.regions)),
    ):
        unknown = sorted(key for key in hints if not 0 <= key < present)
        if unknown:
            raise ValueError(f"{name}: its KernelWork names {kind} {unknown[0]}, the program has {present} of them")
    trips = [float(work.trips.get(n, loop.trip_count or 1)) for n, loop in enumerate(schedule.loops)]
    return trips, [float(work.conditions.get(n, 1.0)) for n in range(len(schedule.regions))]


def _occupied(schedule: Schedule, unit: str, times: Sequence[float]) -> float:
    column = UNITS.index(unit)
    return sum(weight * row[column] for weight, row in zip(times, schedule.busy, strict=True))


def _slots(schedule: Schedule, places: Sequence[int], times: Sequence[float]) -> dict[str, float]:
    cycles = sum(times[place] for place in places)
    slots: dict[str, float] = {}
    for column, (unit, capacity) in enumerate(zip(UNITS, schedule.capacity, strict=True)):
        occupied = sum(times[place] * schedule.busy[place][column] for place in places)
        slots[unit] = occupied / (cycles * capacity) if cycles and capacity else 0.0
    return slots


def _loop_report(
    schedule: Schedule, loop: Loop, trips: float, own: Sequence[int], times: Sequence[float]
) -> LoopReport:
    copies = [size for place in own for size in _DMA.findall(schedule.bundles[place])]
    return LoopReport(
        start=loop.start,
        end=loop.end,
        depth=loop.depth,
        bundles=len(own),
        trips=trips,
        known=loop.trip_count is not None,
        cycles=sum(times[place] for place in own),
        slots=_slots(schedule, own, [1.0] * len(times)),
        dma_bytes=tuple(int(size) * _GRANULE_BYTES if size.isdigit() else None for size in copies),
    )
