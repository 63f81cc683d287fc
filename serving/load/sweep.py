"""Looks for the knee: the highest rate at which a server still answers in time."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..goodput import Goodput

_SLACK_TTFT, _SLACK_TPOT = 5.0, 3.0  # against an idle server, where no limits were given

Report = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How rates are tried.

    Attributes:
        first: the lowest rate, in requests a second: slow enough for an idle server.
        factor: between the rates on the way up.
        most: the highest rate to try.
        share: of requests that must keep the limits for a rate to count as kept up with.
        refinements: how often the gap around the knee is halved.
    """

    first: float = 1.0
    factor: float = 2.0
    most: float = 1024.0
    share: float = 0.9
    refinements: int = 3


async def find_knee(
    measure: Callable[[float, Goodput | None], Awaitable[Report]], plan: Plan, goodput: Goodput | None
) -> dict[str, Any]:
    """Raises the rate until too few requests keep the limits, then halves the gap.

    Args:
        measure: runs one rate and returns its summary, with the share that kept the limits.
        goodput: the limits; None takes 5 times the p90 TTFT and 3 times the p90 TPOT of the lowest rate.

    Returns:
        "points" (a summary of each rate that was tried, with "rate" and "kept", in the order of rates), "knee" (the
        highest rate that was kept up with, None if there is none; no lower one failed), "limits", "reached_most".
    """
    points: list[Report] = []
    if goodput is None:
        idle = await measure(plan.first, None)
        goodput = Goodput(
            ttft=max(1.0, _SLACK_TTFT * idle["ttft_ms"]["p90"]), tpot=max(1.0, _SLACK_TPOT * idle["tpot_ms"]["p90"])
        )

    async def try_rate(rate: float) -> bool:
        report = await measure(rate, goodput)
        report = {"rate": rate, **report, "kept": report["goodput"]["share"] >= plan.share}
        points.append(report)
        return report["kept"]

    low, high, rate = 0.0, None, plan.first
    while high is None and rate <= plan.most:
        if await try_rate(rate):
            low, rate = rate, rate * plan.factor
        else:
            high = rate
    if high is not None and low > 0:
        for _ in range(plan.refinements):
            middle = (low + high) / 2
            low, high = (middle, high) if await try_rate(middle) else (low, middle)
    return {
        "points": sorted(points, key=lambda point: point["rate"]),
        "knee": low or None,
        "reached_most": high is None,
        "limits": goodput.to_dict(),
    }
