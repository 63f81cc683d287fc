"""How much of its nominal rates a chip reaches: three sets, since nobody knows exactly."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Efficiency:
    """
    Args:
        maths, hbm, links: fractions of the nominal rates.
        hop_seconds: until a collective's first byte is one chip further.
        layer_seconds: of each layer, whatever it computes.
        overlap: the fraction of the shorter of computing and sending that is hidden behind the longer one.
    """

    maths: float = 1.0
    hbm: float = 1.0
    links: float = 1.0
    hop_seconds: float = 0.0
    layer_seconds: float = 0.0
    overlap: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Efficiency":
        return cls(**{name: float(value) for name, value in fields.items()})


@dataclass(frozen=True)
class Efficiencies:
    """What bounds a latency from below, the best guess, and what bounds it from above.

    `origin` says where the guess comes from: a calibration's name, or "default".
    """

    low: Efficiency
    best: Efficiency
    high: Efficiency
    origin: str = "default"


NOMINAL = Efficiency()
"""The roofline with maths, memory and links one after the other."""

DEFAULT = Efficiencies(
    low=Efficiency(overlap=1.0),
    # The Scaling Book's figures of v5e: 45 of 50 GB/s on a link, 82 % of that in a profile, 1 us for a hop; matmuls and
    # copies at what the TPU compiler's own cost model reaches (docs/sweep.md).
    best=Efficiency(maths=0.85, hbm=0.8, links=0.74, hop_seconds=1e-6, layer_seconds=2e-6),
    # The slowest that Pope et al. 2022 report of a TPU v4 was 3.4 times its roofline.
    high=Efficiency(maths=0.6, hbm=0.5, links=0.35, hop_seconds=2.7e-6, layer_seconds=60e-6),
    origin="default",
)
