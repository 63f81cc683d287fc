"""A sweep as one HTML file that needs nothing else: no server, no network."""

import json
from importlib.resources import files
from typing import Any

from ...backends.hardware import Chip
from .slices import parse_slice
from .store import Sweep


def page(sweep: Sweep) -> str:
    """The file's text: the Pareto plot, details of each row, filters, the layout on the chips."""
    template = (files(__package__) / "report.html").read_text("utf-8")
    data = {"asked": sweep.asked, "summary": sweep.summary, "rows": sweep.rows, "grids": _grids(sweep)}
    # Inside <script> only "</" could end the data early; JSON reads "<\/" as the same.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return template.replace("__DATA__", text)


def _grids(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Where the devices of each slice stand."""
    chips = {name: Chip.from_dict(row) for name, row in sweep.asked["chips"].items()}
    found = {name: parse_slice(name, chips) for name in sweep.asked["hw"]}
    return {
        name: {"shape": on.grid, "cores": on.chip.devices_per_chip, "slices": on.count, "devices": on.coordinates}
        for name, on in found.items()
    }
