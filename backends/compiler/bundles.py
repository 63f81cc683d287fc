"""The TPU compiler's schedule of one kernel: bundles (one a cycle), what each keeps busy, loops and branches.

Two dump files describe a kernel. `*packed-bundles-post-ra.txt` prints one bundle a line, static stalls included as
empty bundles (the later `final_bundles` folds them into delay fields, so lines there are not cycles).
`*pre-delay_hlo-static-per-bundle-utilization.txt` has one row for each of those bundles, in the same order: how many of
each functional unit it occupies. The column MATMUL counts busy cycles, not instructions: a multiplication that occupies
its matrix unit for 8 cycles counts in 8 rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

UNITS = ("matmul", "matpush", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill", "salu")
"""Functional units in the order of the file's columns. `fill` and `spill` are the part of `vload` and `vstore` that
moves registers to and from memory for want of registers."""

DELAY_SLOTS = 4
"""Bundles behind a branch that run whether it is taken or not."""

_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+ +(?:(?:LH|LB|LE|PB|PF|CT) *)*: ")
_REGION = re.compile(r"(Start/End empty|Start|End) region (\d+)")
_BRANCH = re.compile(
    r"sbr\.(?:rel|abs)\s*(?:\((?P<predicate>!?%\w+)\))?\s*target\s*"
    r"(?:bundleno = (?P<bundle>\d+)|= \$region(?P<region>\d+))"
)


@dataclass(frozen=True)
class Loop:
    """A backward branch: the bundles `start:end` run again and again.

    Args:
        start: first bundle.
        end: behind the last one, the branch's delay slots included.
        depth: how many loops stand around it.
        trip_count: how often the body runs each time the loop is reached, where the program compares with a literal.
    """

    start: int
    end: int
    depth: int
    trip_count: int | None


@dataclass(frozen=True)
class Region:
    """A forward branch: the bundles `start:end` are skipped when `predicate` holds ("" is always)."""

    start: int
    end: int
    predicate: str


@dataclass(frozen=True)
class Schedule:
    """A kernel's program.

    Args:
        bundles: text of each bundle.
        busy: for each bundle, how many of each unit it occupies, in the order of UNITS.
        capacity: how many there are of each unit.
        loops: by start, outer loops first.
        regions: by the place of their branch.
    """

    bundles: tuple[str, ...]
    busy: tuple[tuple[int, ...], ...]
    capacity: tuple[int, ...]
    loops: tuple[Loop, ...]
    regions: tuple[Region, ...]


def parse_schedule(bundle_text: str, utilization_text: str) -> Schedule:
    """Reads the two dumps of one kernel.

    Raises:
        ValueError: they do not describe the same bundles, or are not such dumps.
    """
    bundles = _bundles(bundle_text)
    capacity, busy = _utilization(utilization_text)
    if len(bundles) != len(busy):
        raise ValueError(f"{len(bundles)} bundles but {len(busy)} rows of utilization: not two dumps of one kernel")
    loops, regions = _branches(bundles)
    return Schedule(tuple(bundles), busy, capacity, loops, regions)


def _bundles(text: str) -> list[str]:
    bundles: list[str] = []
    for line in text.splitlines():
        if _BUNDLE.match(line):
            bundles.append(line)
        elif bundles:  # comments of many lines
            bundles[-1] += "\n" + line
    return bundles


def _utilization(text: str) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    lines = text.splitlines()
    if len(lines) < 4 or len(lines[1].split(",")) != len(UNITS):
        raise ValueError(f"expected a table of the {len(UNITS)} units {', '.join(UNITS)}, found {lines[:2]}")
    rows = [tuple(map(int, line.split())) for line in [lines[2], *lines[4:]] if line.strip()]
    return rows[0], tuple(rows[1:])


def _branches(bundles: Sequence[str]) -> tuple[tuple[Loop, ...], tuple[Region, ...]]:
    region_starts: dict[int, int] = {}
    for place, bundle in enumerate(bundles):
        for kind, number in _REGION.findall(bundle):
            if kind != "End":
                region_starts.setdefault(int(number), place)
    backward: list[tuple[int, int, int | None]] = []
    regions: list[Region] = []
    for place, bundle in enumerate(bundles):
        for branch in _BRANCH.finditer(bundle):
            target = int(branch["bundle"]) if branch["bundle"] else region_starts.get(int(branch["region"]))
            predicate = branch["predicate"] or ""
            behind = min(place + 1 + DELAY_SLOTS, len(bundles))
            if target is None:
                continue
            if target <= place:
                backward.append((target, behind, _trip_count(bundles, target, place, predicate)))
            elif target > place + 2:
                regions.append(Region(min(behind, target), target, predicate))
    backward.sort(key=lambda loop: (loop[0], -loop[1]))
    loops = [
        Loop(start, end, sum(a <= start and end <= b and (a, b) != (start, end) for a, b, _ in backward), trips)
        for start, end, trips in backward
    ]
    return tuple(loops), tuple(regions)


def _trip_count(bundles: Sequence[str], start: int, branch: int, predicate: str) -> int | None:
    """The literal that the loop's counter is compared with, if it is one: counters begin at 0 and step by 1."""
    register = predicate.lstrip("!")
    if not register:
        return None
    test = re.compile(re.escape(register) + r" = scmp[\w.]*\s+[^,;]*,\s*([-%\w\[\]]+)")
    for place in range(branch, start - 1, -1):
        found = test.search(bundles[place])
        if found:
            return int(found[1]) if found[1].isdigit() else None
    return None
