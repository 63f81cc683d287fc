"""A sweep as one HTML file that needs nothing else: no server, no network."""

import json
from importlib.resources import files

from .store import Sweep


def page(sweep: Sweep) -> str:
    """The file's text: the Pareto plot, details of each row, filters, the layout on its devices."""
    template = (files(__package__) / "report.html").read_text("utf-8")
    data = {"asked": sweep.asked, "summary": sweep.summary, "rows": sweep.rows}
    # Inside <script> only "</" could end the data early; JSON reads "<\/" as the same.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return template.replace("__DATA__", text)
