"""What the generator takes is told: nothing while it sleeps, a core while it computes."""

import asyncio
import time

import pytest

from distaff.serving.load.overhead import LATE_MS, Overhead


def watched(work: float, sleep: float) -> Overhead:
    async def whole() -> Overhead:
        async with Overhead() as overhead:
            end = time.process_time() + work
            while time.process_time() < end:
                pass
            await asyncio.sleep(sleep + 0.001)
        return overhead

    return asyncio.run(whole())


def test_a_generator_that_sleeps_costs_nothing() -> None:
    value = watched(0, 0.3).report(100)
    assert value["cpu_share"] < 0.3 and value["limits"] == (value["loop_late_ms"]["p90"] > LATE_MS)
    assert value["cpu_us_per_message"] == pytest.approx(value["cpu_s"] * 1e4)
    assert value["loop_late_ms"]["p50"] < 100


def test_one_that_computes_is_found_out() -> None:
    value = watched(0.3, 0.0).report(0)
    assert value["cpu_s"] == pytest.approx(0.3, abs=0.1) and value["cpu_us_per_message"] == 0
    late = watched(0.2, 0.0).report(1)
    assert late["loop_late_ms"]["p99"] > 100, "its loop came to nothing for 0.2 s"
    assert late["limits"]
