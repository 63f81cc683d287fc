"""A sweep in one call, for notebooks."""

from collections.abc import Mapping
from typing import Any

from ...backends.hardware import Chip
from .models import model_config
from .request import Objective, Phase, SweepRequest, Targets, Workload, parse_range
from .slices import parse_slice
from .sweep import plan


def sweep_frame(
    model: str,
    hw: str,
    *,
    phase: Phase = "both",
    isl: int = 2048,
    osl: int = 256,
    batch: str = "1:64",
    chunk: str = "2048",
    weights: tuple[str, ...] = ("bf16",),
    activations: tuple[str, ...] = ("bf16",),
    kv: tuple[str, ...] = ("bf16",),
    slo_ttft: float | None = None,
    slo_tpot: float | None = None,
    objective: Objective = "pareto",
    chips: Mapping[str, Chip] | None = None,
) -> Any:
    """The rows of a sweep as a pandas DataFrame, the best first; the arguments are those of `distaff sweep plan`, with
    targets in seconds.

    Args:
        chips: a table with figures or prices of one's own, of backends.hardware; None: Distaff's.

    Raises:
        SweepError, NothingFitsError: as `plan` does.
        ImportError: pandas is not installed (the extra `dataframe`).
    """
    request = SweepRequest(
        model=model,
        config=model_config(model),
        slices=tuple(parse_slice(name, chips) for name in hw.split(",")),
        workload=Workload.of(isl, osl),
        phase=phase,
        batches=parse_range("batch", batch),
        chunks=parse_range("chunk", chunk),
        weights=weights,
        activations=activations,
        kv=kv,
        targets=Targets(slo_ttft, slo_tpot),
        objective=objective,
    )
    return plan(request).to_dataframe()
