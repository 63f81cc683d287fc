"""The layouts of Pope et al., Efficiently Scaling Transformer Inference (2022), by their formulas, and their figures.

Their layouts are not all Distaff's: attention that is split over the batch, and padding of 48 heads to 64. A TPU v4 has
275 TFLOP/s, 1200 GB/s of memory and 270 GB/s of links. Formulas of sections 3.2 to 3.5; figures of tables 2 and 3.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from distaff.sharding.sweep.calibrate import Point
from distaff.sharding.sweep.roofline import Rates, Steps
from distaff.sharding.sweep.work import DeviceWork, Line, Sends

LINKS = 270e9
RATES = Rates(275e12, 275e12, 1.2e12)
CONTEXT, ANSWER = 2048, 64


@dataclass(frozen=True)
class Palm:
    """L, E, F, N with its padding, and parameters without it."""

    layers: int
    embed: int
    mlp: int
    heads: int
    parameters: float


PALM_540B = Palm(118, 18432, 73728, 64, 540.35e9)
PALM_62B = Palm(64, 8192, 32768, 32, 62.5e9)


@dataclass(frozen=True)
class Row:
    """A row of table 2 or 3: seconds of one forward pass."""

    name: str
    model: Palm
    chips: int
    batch: float
    layout: Literal["WS1D", "WS2D", "WG"]
    weight_bytes: float
    decode: bool
    seconds: float


ROWS = (
    Row("540B decode, 64 chips, B 64, int8", PALM_540B, 64, 64, "WS2D", 1, True, 28.5e-3),
    Row("540B prefill, 64 chips, B 1, int8", PALM_540B, 64, 1, "WS2D", 1, False, 0.29),
    Row("540B decode, 64 chips, B 512, bf16", PALM_540B, 64, 512, "WS2D", 2, True, 93.8e-3),
    Row("540B prefill, 64 chips, B 512, bf16", PALM_540B, 64, 512, "WG", 2, False, 85.2),
    Row("62B decode, 16 chips, B 32, int8", PALM_62B, 16, 32, "WS2D", 1, True, 11.4e-3),
    Row("62B prefill, 16 chips, B 1, int8", PALM_62B, 16, 1, "WS2D", 1, False, 0.16),
    Row("62B decode, 8 chips, B 512, bf16", PALM_62B, 8, 512, "WS2D", 2, True, 79.7e-3),
    Row("62B prefill, 32 chips, B 512, bf16", PALM_62B, 32, 512, "WG", 2, False, 20.2),
)


FIGURE_7 = (
    (125_000, "WS2D", 0.30), (125_000, "WG", 0.20), (250_000, "WS2D", 0.375), (250_000, "WG", 0.375),
    (500_000, "WS2D", 0.42), (500_000, "WG", 0.55), (1_000_000, "WS2D", 0.50), (1_000_000, "WG", 0.76),
)  # fmt: skip
"""Tokens of a prefill of 540B on 64 chips in bf16, layout, fraction of the peak FLOP/s: as far as the figure can be
read. The last one is a row of table 2; none of the others is in a fit."""


def sent_seconds(model: Palm, chips: int, tokens: float, layout: str) -> float:
    """On the links, of all layers; bf16. WG is what they measured, XYZ-weight-gathered: every layer's weights go to
    every chip, and activations, of each chip's own sequences, go nowhere."""
    if layout == "WS1D":
        each = 2 * tokens * model.embed
    elif layout == "WS2D":
        each = 8 * tokens * model.embed / sqrt(chips)
    else:
        each = model.parameters / model.layers * (chips - 1) / chips
    return 2 * each / LINKS * model.layers


def point(row: Row) -> Point:
    """A row as what calibrate takes."""
    model, chips = row.model, row.chips
    tokens = row.batch * (1 if row.decode else CONTEXT)
    keys = CONTEXT + ANSWER / 2 if row.decode else CONTEXT / 2
    sends = Sends(
        Line(sent_seconds(model, chips, tokens, row.layout), 0.0), 0.0, Line(0.0, 0.0), 0.0, 0, Line(0.0, 0.0)
    )
    scores = 4.0 * model.heads * 256 * model.layers / chips
    work = DeviceWork(
        linear=2 * model.parameters / chips,
        head=0.0,
        scores=0.0 if row.decode else scores,
        windowed=(),
        weights=model.parameters / chips,
        experts=0.0,
        share=0.0,
        cache=2.0 * 256 * model.layers / chips if row.decode else 0.0,
        cache_windows=(),
        held=model.parameters / chips,
        second_table=0.0,
        sends=sends,
        stages=1,
        replicas=1,
        coupled=False,
        widest=0.0,
        gathered=0.0,
        vocab=256_000,
        layers=model.layers,
    )
    ones = np.ones(1)
    steps = Steps(
        tokens=tokens * ones,
        rows=row.batch * ones,
        keys=keys * ones,
        read=row.batch * keys * ones,
        weight_bytes=row.weight_bytes * ones,
        cache_bytes=2 * ones,
        narrow=np.zeros(1, bool),
    )
    return Point(row.name, work, RATES, steps, row.seconds)


def most_context(model: Palm, chips: int, batch: int, *, attention: Literal["heads", "batch"], kv_heads: int) -> float:
    """Positions that fit into 30 % of 32 GiB of each chip (table 1)."""
    each = 2 * kv_heads * 256 * model.layers * 2
    held = each / chips if attention == "batch" or kv_heads > 1 else each
    return 0.3 * 32 * 2**30 / (batch * held)
