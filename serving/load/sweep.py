"""Looks for the knee: the highest rate at which a server still answers in time."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..goodput import Goodput

_SLACK_TTFT, _SLACK_TPOT = 5.0, 3.0  # against an idle server, where no limits were given

Report = dict[str, Any]
Measured = Callable[[Goodput | None], Report]
"""What one rate brought, summed up under limits."""


@dataclass(frozen=True)
class Plan:
    """How rates are tried.

    Attributes:
        first: the lowest rate, in requests a second: slow enough for an idle server.
        factor: between the rates on the way up.
        most: the highest rate to try.
        share: of requests that must keep the limits for a rate to count as kept up with.
        seconds: how long each rate is sent.
        refinements: how often the gap around the knee is halved.
    """

    first: float = 1.0
    factor: float = 2.0
    most: float = 1024.0
    share: float = 0.9
    seconds: float = 20.0
    refinements: int = 3


async def find_knee(
    measure: Callable[[float], Awaitable[Measured]], plan: Plan, goodput: Goodput | None
) -> dict[str, Any]:
    """Raises the rate until too few requests keep the limits, then halves the gap.

    Args:
        measure: runs one rate.
        goodput: the limits; None takes 5 times the p90 TTFT and 3 times the p90 TPOT of the lowest rate.

    Returns:
        "points" (a summary of each rate that was tried, with "rate" and "kept", in the order of rates), "knee" (the
        highest rate that was kept up with, None if there is none; no lower one failed), "limits", "reached_most".
    """
    points: list[Report] = []
    lowest = await measure(plan.first)
    limits = goodput or _idle_limits(lowest(None))

    def kept(rate: float, measured: Measured) -> bool:
        report = measured(limits)
        points.append({"rate": rate, **report, "kept": report["goodput"]["share"] >= plan.share})
        return points[-1]["kept"]

    low, high, rate = 0.0, None, plan.first
    while high is None and rate <= plan.most:
        if kept(rate, lowest if rate == plan.first else await measure(rate)):
            low, rate = rate, rate * plan.factor
        else:
            high = rate
    if high is not None and low > 0:
        for _ in range(plan.refinements):
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle, await measure(middle)) else (low, middle)
    return {
        "points": sorted(points, key=lambda point: point["rate"]),
        "knee": low or None,
        "reached_most": high is None,
        "limits": limits.to_dict(),
    }


def _idle_limits(report: Report) -> Goodput:
    """What is still in time, going by a server that is idle."""
    return Goodput(
        ttft=max(1.0, _SLACK_TTFT * report["ttft_ms"]["p90"]), tpot=max(1.0, _SLACK_TPOT * report["tpot_ms"]["p90"])
    )
