"""Efficiencies in a file."""

from pathlib import Path
from typing import Any

import yaml

from ...backends.hardware import Chip
from .efficiency import Efficiencies, Efficiency
from .errors import SweepError


def read_calibration(path: Path) -> Efficiencies:
    """Reads what calibrate wrote.

    Raises:
        SweepError: the file is not of that form.
    """
    try:
        read: Any = yaml.safe_load(path.read_text("utf-8"))
        made = {name: Efficiency.from_dict(read[name]) for name in ("low", "best", "high")}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise SweepError(
            f"--calibration {path}: expected low, best and high with figures of {', '.join(Efficiency().as_dict())} "
            f"({error}); `distaff sweep calibrate` writes such a file"
        ) from error
    return Efficiencies(**made, origin=str(read.get("origin", path.name)))


def calibration_yaml(found: Efficiencies, *, about: dict[str, Any], chip: Chip | None = None) -> str:
    """The file that read_calibration reads; `about` says how good it is. With a chip it is one for `--chips` too."""
    tables = {name: getattr(found, name).as_dict() for name in ("low", "best", "high")}
    made: dict[str, Any] = {"origin": found.origin, **tables, "about": about}
    if chip is not None:
        row = chip.as_dict()
        made["chips"] = {row.pop("name"): row}
    return yaml.safe_dump(made, sort_keys=False)
