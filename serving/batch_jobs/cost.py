"""What a job costs: chip-hours times the price of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...backends.hardware import chips


@dataclass(frozen=True)
class Price:
    """What a chip costs an hour, and who says so."""

    dollars_per_chip_hour: float
    source: str


def price_of(manifest: Mapping[str, Any]) -> Price | None:
    """What the manifest was priced at, else what the hardware table says of the chip that the last run was on."""
    cost = manifest.get("cost")
    if cost is not None and cost["dollars_per_chip_hour"] is not None:
        return Price(cost["dollars_per_chip_hour"], cost["price_source"])
    runs = manifest["runs"]
    name = runs[-1].get("chip") if runs else None
    chip = None if name is None else chips().get(name)
    if chip is None or chip.dollars_per_hour is None:
        return None
    source = chip.sources.get("dollars_per_hour")
    told = "" if source is None else f", {source.page}, {source.read}"
    return Price(chip.dollars_per_hour, f"the hardware table's for {chip.name}, on demand{told}")


def cost_of(manifest: Mapping[str, Any], price: Price | None) -> dict[str, Any]:
    """Chip-hours of all runs, loading included, and what they cost; null where no price is known."""
    hours = sum(run["seconds"] * run.get("chips", 1) for run in manifest["runs"]) / 3600
    tokens = manifest["usage"]["total_tokens"]
    dollars = None if price is None else hours * price.dollars_per_chip_hour
    return {
        "chip_hours": round(hours, 6),
        "dollars_per_chip_hour": None if price is None else price.dollars_per_chip_hour,
        "price_source": None if price is None else price.source,
        "dollars": None if dollars is None else round(dollars, 6),
        "dollars_per_million_tokens": None if dollars is None or not tokens else round(dollars / tokens * 1e6, 6),
    }
