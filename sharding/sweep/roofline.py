"""How long steps take: arithmetic on whole arrays of candidates at once.

A step's matrices take the longer of their FLOPs and of reading their weights; attention the longer of its FLOPs and of
reading keys and values; what is sent comes on top, less what overlaps. Letters as in the rest: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...backends.hardware import Chip
from .efficiency import Efficiency
from .errors import SweepError
from .work import DeviceWork

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """DeviceWork and rates of many layouts, a row each; candidates point to rows."""

    table: dict[str, Floats]

    @classmethod
    def of(cls, works: Sequence[DeviceWork], rates: Sequence["Rates"]) -> "Columns":
        rows = [{**_flat(work), **rate.flat()} for work, rate in zip(works, rates, strict=True)]
        return cls({name: np.array([row[name] for row in rows], float) for name in rows[0]})

    def __getitem__(self, name: str) -> Floats:
        return self.table[name]

    def take(self, rows: Ints) -> "Columns":
        """A row for each candidate."""
        return Columns({name: column[rows] for name, column in self.table.items()})


@dataclass(frozen=True)
class Rates:
    """Nominal rates of one device: FLOP/s in 16 bits (or more) and in 8, bytes each second."""

    flops16: float
    flops8: float
    hbm: float

    @classmethod
    def of(cls, chip: Chip) -> "Rates":
        narrow = max(map(chip.device_flops, chip.flops), default=chip.device_flops())
        return cls(chip.device_flops(), narrow, chip.device_hbm_bytes_per_second)

    def flat(self) -> dict[str, float]:
        return {"flops16": self.flops16, "flops8": self.flops8, "hbm_rate": self.hbm}


@dataclass(frozen=True)
class Steps:
    """What steps of many candidates do, an entry each.

    Args:
        tokens: T of one replica. rows: B whose logits are drawn.
        keys: positions that a token attends to, on the average. read: positions read from the cache by the step.
        weight_bytes, cache_bytes: of a number. narrow: arithmetic in 8 bits.
    """

    tokens: Floats
    rows: Floats
    keys: Floats
    read: Floats
    weight_bytes: Floats
    cache_bytes: Floats
    narrow: Bools

    @classmethod
    def one(
        cls, *, tokens: float, rows: float, keys: float, read: float, weight_bytes: float, cache_bytes: float
    ) -> "Steps":
        """A single step, whose arithmetic is in 16 bits or more."""
        given = (tokens, rows, keys, read, weight_bytes, cache_bytes)
        return cls(*(np.full(1, value, float) for value in given), narrow=np.zeros(1, bool))


@dataclass(frozen=True)
class Split:
    """Seconds of a step by what they go to: `maths` and `weights` overlap, and so do `scores` and `cache`; `links`,
    `between` and `latency` come on top."""

    maths: Floats
    weights: Floats
    scores: Floats
    cache: Floats
    links: Floats
    between: Floats
    latency: Floats
    total: Floats

    PARTS = ("maths", "weights", "scores", "cache", "links", "between", "latency")

    @property
    def bound_by(self) -> Ints:
        """The place of the largest part of each, in PARTS and in BOUNDS."""
        return np.argmax(np.stack([getattr(self, part) for part in self.PARTS]), axis=0)


BOUNDS = ("maths", "HBM weights", "maths", "HBM KV", "ICI", "DCN", "latency")
"""What each part of a Split is called where it binds."""


def step_seconds(of: Columns, steps: Steps, at: Efficiency) -> Split:
    """Seconds of one step of each candidate."""
    stages = of["stages"]
    parts = _parts(steps.tokens, stages)
    ticks = parts + stages - 1
    # Of the parts that go through a pipeline each takes its tick; without one there is one part and one tick.
    share = ticks / parts
    flops = np.where(steps.narrow, of["flops8"], of["flops16"]) * at.maths
    hbm = of["hbm_rate"] * at.hbm
    maths = (of["linear"] * steps.tokens * share + of["head"] * steps.rows) / flops
    tokens = np.where(of["coupled"] > 0, steps.tokens * of["replicas"], steps.tokens)
    touched = 1 - (1 - of["share"]) ** (tokens / parts)
    # Each stage reads its layers in every tick; the unembedding, 2 FLOPs for each number of it, is read once.
    weights = ((of["weights"] + of["experts"] * touched) * ticks + of["head"] / 2) * steps.weight_bytes / hbm
    scores = (of["scores"] * steps.keys + _windowed(of, "windowed", steps.keys)) * steps.tokens * share / of["flops16"]
    scores = scores / at.maths
    held = of["cache"] * steps.read + _windowed(of, "cached", steps.read / np.maximum(steps.rows, 1)) * steps.rows
    cache = held * steps.cache_bytes * share / hbm
    links = of["send_fixed"] + of["send_each"] * steps.tokens + of["send_weights"] * steps.weight_bytes / 2
    links = np.maximum(links, 0.0) / at.links
    between = np.maximum(of["between_fixed"] + of["between_each"] * steps.tokens, 0.0) / at.links
    layers = of["layers"] / stages * ticks * at.layer_seconds
    latency = of["hops"] * at.hop_seconds + layers
    computing = np.maximum(maths, weights) + np.maximum(scores, cache)
    sending = links + between + of["hops"] * at.hop_seconds
    hidden = at.overlap * np.minimum(computing, sending)
    total = computing + sending - hidden + layers
    return Split(maths, weights, scores, cache, links, between, latency, total)


def _parts(tokens: Floats, stages: Floats) -> Floats:
    """As pipeline.num_parts: the most parts, up to the stages, into which the tokens divide."""
    parts = np.ones_like(tokens)
    for number in range(2, int(stages.max(initial=1)) + 1):
        parts = np.where((number <= stages) & (tokens % number == 0), number, parts)
    return parts


MOST_WINDOWS = 2
"""Lengths of windows in one model."""


def _windowed(of: Columns, name: str, keys: Floats) -> Floats:
    total = np.zeros_like(keys)
    for number in range(MOST_WINDOWS):
        total = total + of[f"{name}{number}"] * np.minimum(keys, of[f"{name}{number}_length"])
    return total


def _flat(work: DeviceWork) -> dict[str, float]:
    flat: dict[str, float] = {
        **{name: float(getattr(work, name)) for name in _PLAIN},
        "send_fixed": work.sends.activations.fixed,
        "send_each": work.sends.activations.each,
        "send_weights": work.sends.weights,
        "between_fixed": work.sends.between.fixed,
        "between_each": work.sends.between.each,
        "hops": work.sends.hops,
        "sent_fixed": work.sends.num_bytes.fixed,
        "sent_each": work.sends.num_bytes.each,
    }
    for name, windows in (("windowed", work.windowed), ("cached", work.cache_windows)):
        if len(windows) > MOST_WINDOWS:
            raise SweepError(f"layers with {len(windows)} lengths of windows; {MOST_WINDOWS} are counted")
        for number in range(MOST_WINDOWS):
            length, each = windows[number] if number < len(windows) else (1, 0.0)
            flat[f"{name}{number}"], flat[f"{name}{number}_length"] = each, float(length)
    return flat


_PLAIN = ("linear", "head", "scores", "weights", "experts", "share", "cache", "held", "second_table", "stages",
          "replicas", "coupled", "widest", "gathered", "vocab", "layers")  # fmt: skip
