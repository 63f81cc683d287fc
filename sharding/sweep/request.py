"""What a sweep is asked: a model, chips, a workload, what may vary, and what counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...models.config import ModelConfig
from ..layout import MESH_AXES
from .efficiency import DEFAULT, Efficiencies
from .errors import SweepError
from .slices import Slice

Phase = Literal["prefill", "decode", "both"]
Objective = Literal["latency", "throughput", "cost", "energy", "pareto"]

WIDTHS: Mapping[str, float] = {"fp32": 4, "bf16": 2, "int8": 1, "fp8": 1, "int4": 0.5}
"""Bytes of a number in each precision."""


@dataclass(frozen=True)
class Workload:
    """Requests: their prompts and answers in tokens. `longest` is what a row of the cache must hold."""

    isl: float
    osl: float
    longest: int

    @classmethod
    def of(cls, isl: int, osl: int) -> "Workload":
        """All alike.

        Raises:
            SweepError: no prompt or no answer.
        """
        if isl < 1 or osl < 1:
            raise SweepError(f"--isl {isl}, --osl {osl}: prompts and answers have at least one token")
        return cls(isl, osl, isl + osl)

    @classmethod
    def read(cls, path: Path) -> "Workload":
        """The means of a trace: a JSON object a line, with input_tokens and output_tokens.

        Raises:
            SweepError: it is not such a file, or empty.
        """
        pairs: list[tuple[int, int]] = []
        try:
            for line in path.read_text("utf-8").splitlines():
                if line.strip():
                    read = json.loads(line)
                    pairs.append((int(read["input_tokens"]), int(read["output_tokens"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SweepError(
                f"--trace {path}: line {len(pairs) + 1} is not a JSON object with input_tokens and output_tokens "
                f"({error})"
            ) from error
        if not pairs or min(map(min, pairs)) < 1:
            raise SweepError(f"--trace {path}: needs requests with at least one token in and out")
        count = len(pairs)
        return cls(sum(i for i, _ in pairs) / count, sum(o for _, o in pairs) / count, max(i + o for i, o in pairs))


@dataclass(frozen=True)
class Targets:
    """Seconds that must not be exceeded; None: any."""

    ttft: float | None = None
    tpot: float | None = None


@dataclass(frozen=True)
class SweepRequest:
    """
    Args:
        model: as the user named it; config: what it is.
        slices: what it could run on.
        batches: requests decoded at once on all of a slice.
        chunks: tokens of a prefill step of one replica.
        weights, activations, kv: precisions, of WIDTHS.
        axes: mesh axes that may be longer than 1.
    """

    model: str
    config: ModelConfig
    slices: tuple[Slice, ...]
    workload: Workload
    phase: Phase = "both"
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    chunks: tuple[int, ...] = (2048,)
    weights: tuple[str, ...] = ("bf16",)
    activations: tuple[str, ...] = ("bf16",)
    kv: tuple[str, ...] = ("bf16",)
    axes: tuple[str, ...] = MESH_AXES
    targets: Targets = Targets()
    objective: Objective = "pareto"
    efficiencies: Efficiencies = DEFAULT

    def __post_init__(self) -> None:
        for what in ("weights", "activations", "kv"):
            for name in getattr(self, what):
                if name not in WIDTHS:
                    raise SweepError(f"--{what} {name}: precisions are {', '.join(WIDTHS)}")
        unknown = [axis for axis in self.axes if axis not in MESH_AXES]
        if unknown:
            raise SweepError(f"--axes {unknown[0]}: mesh axes are {', '.join(MESH_AXES)}")
        if not self.slices or not self.batches or not self.chunks or min(*self.batches, *self.chunks) < 1:
            raise SweepError("a sweep needs chips, and batches and chunks from 1")


def parse_range(field: str, text: str) -> tuple[int, ...]:
    """Reads "1:64" (powers of two, both ends included), "8", or "8,24,32".

    Raises:
        SweepError: not of these forms.
    """
    found: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()) or int(first) < 1:
            raise SweepError(f"{field} {text!r}: expected numbers such as 32, 8,24, or 1:64 (powers of two, inclusive)")
        if not colon:
            found.append(int(first))
            continue
        low, high = int(first), int(last)
        if high < low:
            raise SweepError(f"{field} {text!r}: {low} is above {high}")
        powers = [low * 2**n for n in range(high.bit_length()) if low * 2**n <= high]
        found += powers if powers[-1] == high else [*powers, high]
    return tuple(dict.fromkeys(found))
