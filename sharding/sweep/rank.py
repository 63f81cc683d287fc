"""Which candidates are shown, and in which order."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import SweepError
from .plan import Scores
from .request import Objective
from .roofline import Floats, Ints

Mask = NDArray[np.bool_]


def order(scores: Scores, objective: Objective) -> Ints:
    """Candidates from the best to the worst: those that meet the targets first, those that do not fit last.

    Raises:
        SweepError: the objective needs a price, or a power, that no chip has.
    """
    value = _VALUES[objective](scores)
    usable = scores.fits & np.isfinite(value)
    if not np.isfinite(value[scores.fits]).any() and scores.fits.any():
        names = ", ".join(dict.fromkeys(on.chip.name for on in scores.request.slices))
        figure, flag = ("price", "--price CHIP=DOLLARS") if objective == "cost" else ("power", "--set CHIP.watts=N")
        raise SweepError(f"--objective {objective}: the {figure} of {names} is not known; give it with {flag}")
    key = np.where(np.isnan(value), np.inf, value)
    return np.lexsort((scores.per_chip * -1, key, ~meets(scores), ~usable))


def meets(scores: Scores) -> Mask:
    """Whether the best guess keeps the targets."""
    targets = scores.request.targets
    found = np.ones(len(scores), bool)
    if targets.ttft is not None:
        found &= scores.ttft[1] <= targets.ttft
    if targets.tpot is not None:
        found &= scores.tpot[1] <= targets.tpot
    return found


def latency(scores: Scores) -> Floats:
    """What users wait for: between tokens, or for the first one where prefill alone is asked."""
    return scores.ttft[1] if scores.request.phase == "prefill" else scores.tpot[1]


def pareto(scores: Scores) -> Mask:
    """Candidates that fit, meet the targets, and that no other one beats in both latency and tokens for each chip."""
    usable = scores.fits & meets(scores) & np.isfinite(latency(scores))
    return front(latency(scores), scores.per_chip, usable)


def front(low: Floats, high: Floats, usable: Mask) -> Mask:
    """The non-dominated ones of `usable`, where less of `low` and more of `high` is better."""
    found = np.zeros(len(low), bool)
    numbers = np.flatnonzero(usable)
    best = -np.inf
    for number in numbers[np.lexsort((-high[numbers], low[numbers]))]:
        if high[number] > best:
            found[number], best = True, high[number]
    return found


def shown(scores: Scores, ordered: Ints, most: int) -> list[int]:
    """The first `most` of an order, and the first of each layout of each slice, which the report compares."""
    kept = list(dict.fromkeys(ordered[:most].tolist()))
    seen = {int(scores.layout[number]) for number in kept}
    for number in ordered.tolist():
        layout = int(scores.layout[number])
        if layout not in seen:
            seen.add(layout)
            kept.append(number)
    return kept


def along_front(wait: Floats, per_chip: Floats, on_front: Mask) -> Floats:
    """Along the front by latency, then the rest by what they lack of the front's tokens at their latency."""
    if not on_front.any():
        return wait
    numbers = np.flatnonzero(on_front)
    numbers = numbers[np.argsort(wait[numbers])]
    reach = np.maximum.accumulate(per_chip[numbers])
    at = np.clip(np.searchsorted(wait[numbers], wait, side="right") - 1, 0, len(numbers) - 1)
    # The front's own are below 1; of the others those that come nearest to it are first.
    rank = np.empty(len(wait))
    rank[:] = 2 + (reach[at] - per_chip) / np.maximum(reach[at], 1e-30)
    rank[numbers] = np.arange(len(numbers)) / len(numbers)
    return np.where(np.isfinite(wait), rank, np.inf)


_VALUES: dict[str, Callable[[Scores], Floats]] = {
    "latency": latency,
    "throughput": lambda scores: -scores.per_chip,
    "cost": lambda scores: scores.dollars_per_million,
    "energy": lambda scores: -scores.tokens_per_joule,
    "pareto": lambda scores: along_front(latency(scores), scores.per_chip, pareto(scores)),
}
