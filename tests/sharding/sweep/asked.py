"""What these tests ask: a small model on four chips."""

from dataclasses import replace

from distaff.sharding.sweep.request import SweepRequest, Workload
from distaff.sharding.sweep.slices import parse_slice

from ..shipped import shipped

LLAMA = shipped("llama-3.1-8b")
SMALL = replace(LLAMA, layers=LLAMA.layers[:2])
V5E = parse_slice("v5e:2x2")


def request(**fields: object) -> SweepRequest:
    given: dict[str, object] = {
        "model": "small", "config": SMALL, "slices": (V5E,), "workload": Workload.of(512, 64), "batches": (1, 8, 64),
    }  # fmt: skip
    return SweepRequest(**{**given, **fields})  # pyright: ignore[reportArgumentType]
