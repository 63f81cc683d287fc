"""Rows after a compiler has seen them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from distaff.backends.compile_job import CompileJob
from distaff.backends.compiler.report import CompileReport, MemoryReport
from distaff.sharding.collectives import StepShape
from distaff.sharding.footprint import footprint
from distaff.sharding.parsing import parse_layout
from distaff.sharding.presets import preset
from distaff.sharding.sweep.checked import compiled_row, ordered
from distaff.sharding.sweep.plan import Placed, score
from distaff.sharding.sweep.request import Targets
from distaff.sharding.sweep.rows import Row, rows_of
from distaff.sharding.sweep.verify import Check, Task, Verified

from .asked import SMALL, V5E, request

LITTLE = MemoryReport(1 << 20, 0, 0)
ASKED = request(phase="decode", batches=(8,), objective="latency")
LAYOUTS = [parse_layout(text, num_devices=4) for text in ("tensor=4", "tensor-2d:tensor=2,tensor2=2", "data=4")]


def rows() -> list[Row]:
    return rows_of(score(ASKED, tuple(Placed.of(ASKED, layout, V5E) for layout in LAYOUTS)), range(3))


def report(milliseconds: float, *, memory: MemoryReport = LITTLE) -> CompileReport:
    cycles = round(milliseconds * 1e-3 * V5E.chip.clock_hertz)
    return CompileReport("v5e:2x2", "libtpu 0", 1.0, 4, memory, 1, 1, cycles, cycles)


def answer(row: Row, found: CompileReport | str, phase: str = "decode") -> Verified:
    shape = StepShape(row["batch"] // row["replicas"]) if phase == "decode" else StepShape(1, 512)
    task = Task(CompileJob("a:b", {}, "v5e:2x2"), "")
    check = Check(row["id"], phase, shape, task, task)
    if isinstance(found, str):
        return Verified(check, None, {"kind": found, "message": "why"}, False)
    return Verified(check, found, None, False)


def seen(row: Row, *found: Verified) -> Row:
    return compiled_row(row, found, ASKED, preset(row["preset"], row["mesh"]), V5E)


def ids(rows: Sequence[Row]) -> list[str]:
    return [row["id"] for row in rows]


def test_what_the_compiler_estimates_weighs_in() -> None:
    """The first by arithmetic takes ten times as long by its compiler's cycles: it is behind the second, and both of
    them are before what no compiler has seen."""
    first, second, third = rows()
    slow, fast = seen(first, answer(first, report(50.0))), seen(second, answer(second, report(0.001)))
    assert slow["checked"]["tpot_ms"] > 50 > 10 * first["tpot_ms_best"]
    assert fast["checked"]["tpot_ms"] == pytest.approx(second["tpot_ms_best"])  # cycles leave out waiting for memory
    assert ids(ordered([slow, fast, third], "latency", prefill=False)) == ids([second, first, third])


@pytest.mark.parametrize("objective", ["latency", "throughput", "cost", "pareto"])
def test_what_is_refused_is_never_above_what_is_accepted(objective: str) -> None:
    first, second, third = rows()
    refused = seen(first, answer(first, "hbm"))
    accepted = seen(second, answer(second, report(90.0)))
    found = ordered([refused, accepted, third], objective, prefill=False)  # pyright: ignore[reportArgumentType]
    assert ids(found) == ids([second, third, first])
    assert refused["evidence"] == "refused" and refused["reason"].startswith("decode: hbm: why; largest arguments: ")
    assert not refused["fits"] and not refused["pareto"]
    assert seen(refused, answer(refused, report(1.0)))["fits"]  # another compiler may accept it


def test_a_program_that_takes_more_than_a_device_has_is_refused() -> None:
    row = rows()[0]
    found = seen(row, answer(row, report(1.0, memory=MemoryReport(1 << 33, 1 << 33, 1 << 30))))
    assert found["evidence"] == "refused" and "needs 17.00 GiB, a device has 15.75 GiB" in found["reason"]


def test_targets_hold_for_what_was_compiled() -> None:
    asked = replace(ASKED, targets=Targets(tpot=0.02))
    row = rows()[0]
    found = compiled_row(row, [answer(row, report(50.0))], asked, LAYOUTS[0], V5E)
    assert row["meets_targets"] and not found["checked"]["meets_targets"]


def test_without_a_compiler_a_row_stays_what_it_was() -> None:
    row = rows()[0]
    found = seen(row, answer(row, "unavailable"))
    assert found == {**row, "reason": "not compiled: why"}


def test_a_prompt_is_computed_beside_the_caches_of_rows_that_wait() -> None:
    asked = replace(ASKED, phase="both")
    (row,) = rows_of(score(asked, (Placed.of(asked, LAYOUTS[0], V5E),)), [0])
    found = compiled_row(row, [answer(row, report(1.0), "prefill")], asked, LAYOUTS[0], V5E)
    cached = footprint(SMALL, LAYOUTS[0], "bfloat16").cache_token
    assert found["compiled"]["prefill"]["peak_bytes"] == (1 << 20) + 7 * 640 * cached  # 576 positions fill 5 pages
