"""From what `distaff sweep` is given to a request."""

import re
from typing import TYPE_CHECKING

from ..backends.errors import InvalidParameterError

if TYPE_CHECKING:
    from ..sharding.sweep.request import SweepRequest
    from ..sharding.sweep.store import Sweep


def parse_time(field: str, text: str | None) -> float | None:
    """Seconds of "500ms" or "1.5s".

    Raises:
        InvalidParameterError: not of that form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InvalidParameterError(field, text, "a time such as 500ms or 1.5s")
    return float(found[1]) * (1e-3 if found[2] == "ms" else 1.0)


def request_of(sweep: "Sweep", *, offline: bool) -> "SweepRequest":
    """The request that a stored sweep answered, with the chips' figures of then."""
    from ..backends.hardware import Chip
    from ..sharding.sweep.efficiency import Efficiencies, Efficiency
    from ..sharding.sweep.models import model_config
    from ..sharding.sweep.request import SweepRequest, Targets, Workload
    from ..sharding.sweep.slices import parse_slice

    asked = sweep.asked
    known = {name: Chip.from_dict(figures) for name, figures in asked["chips"].items()}
    rates = asked["efficiencies"]
    made = {name: Efficiency.from_dict(rates[name]) for name in ("low", "best", "high")}
    ttft, tpot = (None if asked[name] is None else asked[name] / 1e3 for name in ("slo_ttft_ms", "slo_tpot_ms"))
    return SweepRequest(
        model=asked["model"],
        config=model_config(asked["model"], offline=offline),
        slices=tuple(parse_slice(name, known) for name in asked["hw"]),
        workload=Workload(asked["isl"], asked["osl"], asked["longest"]),
        phase=asked["phase"],
        batches=tuple(asked["batches"]),
        chunks=tuple(asked["chunks"]),
        weights=tuple(asked["weights"]),
        activations=tuple(asked["activations"]),
        kv=tuple(asked["kv"]),
        axes=tuple(asked["axes"]),
        targets=Targets(ttft, tpot),
        objective=asked["objective"],
        efficiencies=Efficiencies(**made, origin=rates["origin"]),
    )
