"""What XLA is told for a GPU, from compiler_options.yaml."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from .chips import GpuChip


def compiler_options(chip: GpuChip, *, attached: bool) -> dict[str, Any]:
    """Options for a chip that is in this machine, or is not."""
    table = _table()
    chosen: dict[str, Any] = {}
    for section in ("all", chip.platform, chip.capability, "attached" if attached else "ahead"):
        chosen |= {name: entry["value"] for name, entry in table.get(section, {}).items()}
    return chosen


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    return yaml.safe_load(files(__package__).joinpath("compiler_options.yaml").read_text())
