"""Efficiencies that explain measured steps best, and how far they are off for steps that they have not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from .efficiency import Efficiencies, Efficiency
from .errors import SweepError
from .roofline import Columns, Floats, Rates, Steps, step_seconds
from .work import DeviceWork

FITTED = ("maths", "hbm", "links", "layer_seconds")
_LEAST = (0.02, 0.02, 0.02, 1e-7)
_MOST = (1.0, 1.0, 1.0, 5e-3)
_EVALUATIONS = 100
_STARTS = ((0.8, 0.6, 0.5, 3e-5), (0.5, 0.4, 0.2, 1e-4), (0.9, 0.9, 0.8, 1e-6))


@dataclass(frozen=True)
class Point:
    """A step that was measured.

    Args:
        steps: with one entry in each array.
        seconds: how long it took.
    """

    name: str
    work: DeviceWork
    rates: Rates
    steps: Steps
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is predicted of a point: fitted with it, and without it."""

    name: str
    seconds: float
    fitted: float
    left_out: float

    @property
    def error(self) -> float:
        """Of the prediction without it, as a fraction of what was measured."""
        return self.left_out / self.seconds - 1


@dataclass(frozen=True)
class Calibration:
    """The fit to all points, and how it does on each of them when that one is left out."""

    best: Efficiency
    estimates: tuple[Estimate, ...]

    @property
    def mean_error(self) -> float:
        return float(np.mean([abs(each.error) for each in self.estimates]))

    @property
    def worst_error(self) -> float:
        return max(abs(each.error) for each in self.estimates)

    def efficiencies(self, origin: str) -> Efficiencies:
        """The best guess, and bounds as far from it as the worst point that was left out."""
        wider = 1 + self.worst_error
        return Efficiencies(_scaled(self.best, 1 / wider), self.best, _scaled(self.best, wider), origin)


def calibrate(points: Sequence[Point], *, hop_seconds: float = 0.0) -> Calibration:
    """Fits efficiencies to points, relative errors squared.

    Args:
        points: at least one more than there are figures to fit.
        hop_seconds: kept as it is: points with few different collectives cannot tell it from the time of a layer.

    Raises:
        SweepError: too few points, or a time that is none.
    """
    if len(points) <= len(FITTED):
        raise SweepError(
            f"{len(points)} points: {len(FITTED)} figures are fitted, so at least {len(FITTED) + 1} are needed"
        )
    if any(not point.seconds > 0 for point in points):
        raise SweepError("a point has no time above 0")
    every = _Points.of(points)
    best = every.fit(hop_seconds)
    fitted = every.predicted(best)
    estimates = [
        Estimate(
            point.name,
            point.seconds,
            float(fitted[n]),
            predicted(point, _Points.of([*points[:n], *points[n + 1 :]]).fit(hop_seconds)),
        )
        for n, point in enumerate(points)
    ]
    return Calibration(best, tuple(estimates))


def predicted(point: Point, at: Efficiency) -> float:
    """Seconds of a point's step."""
    return float(_Points.of([point]).predicted(at)[0])


@dataclass(frozen=True)
class _Points:
    """Several at once: a fit asks for all of them some thousand times."""

    columns: Columns
    steps: Steps
    seconds: Floats

    @classmethod
    def of(cls, points: Sequence[Point]) -> "_Points":
        columns = Columns.of([point.work for point in points], [point.rates for point in points])
        together = {
            each.name: np.concatenate([getattr(point.steps, each.name) for point in points]) for each in fields(Steps)
        }
        return cls(columns, Steps(**together), np.array([point.seconds for point in points], float))

    def predicted(self, at: Efficiency) -> Floats:
        return step_seconds(self.columns, self.steps, at).total

    def fit(self, hop_seconds: float) -> Efficiency:
        from scipy.optimize import least_squares  # nothing else here takes half a second to import

        def errors(x: Floats) -> Floats:
            return np.log(self.predicted(_efficiency(x, hop_seconds)) / self.seconds)

        bounds = (np.log(_LEAST), np.log(_MOST))
        found = [least_squares(errors, np.log(start), bounds=bounds, max_nfev=_EVALUATIONS) for start in _STARTS]
        return _efficiency(min(found, key=lambda each: each.cost).x, hop_seconds)


def _efficiency(x: Floats, hop_seconds: float) -> Efficiency:
    values = {name: float(value) for name, value in zip(FITTED, np.exp(x), strict=True)}
    return Efficiency(**values, hop_seconds=hop_seconds)


def _scaled(at: Efficiency, slower: float) -> Efficiency:
    rates = {name: min(1.0, getattr(at, name) / slower) for name in ("maths", "hbm", "links")}
    times = {name: getattr(at, name) * slower for name in ("hop_seconds", "layer_seconds")}
    return replace(at, **rates, **times)
