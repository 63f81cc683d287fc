"""Keeps documents in step with the tree: fills the blocks behind `<!-- help: COMMAND -->` and `<!-- file: PATH -->`,
and the table behind `<!-- table: sampling parameters -->`.

.venv/bin/python docs/embed.py        rewrites the documents; a test fails until that is done
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- (?P<kind>help|file): (?P<what>.*?) -->\n```\w*\n)(?P<body>.*?)(```\n)", re.DOTALL)

_TABLE = re.compile(r"(<!-- table: sampling parameters -->\n)(?:\|.*\n)*")


def documents() -> list[Path]:
    """Every document that users read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def embedded(text: str) -> str:
    """A document's text with its blocks filled."""
    text = _BLOCK.sub(lambda block: block[1] + _content(block["kind"], block["what"]) + block[5], text)
    return _TABLE.sub(lambda table: table[1] + _sampling_parameters(), text)


def _content(kind: str, what: str) -> str:
    if kind == "file":
        return (ROOT / what).read_text(encoding="utf-8")
    program = "from distaff.scripts.main import main; main()"
    arguments = [*what.split(), "--help"] if what != "distaff" else ["--help"]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _sampling_parameters() -> str:
    """The capability table, a line for each parameter."""
    from distaff.serving.capabilities import PARAMETERS  # imports JAX, which few documents need

    lines = ["| Parameter | Default | Accepted | Where | What it does |", "|---|---|---|---|---|"]
    for parameter in PARAMETERS:
        cells = (f"`{parameter.name}`", f"`{parameter.default!r}`", parameter.domain.expected, parameter.where.value)
        lines.append(f"| {' | '.join(cells)} | {parameter.doc} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for document in documents():
        before = document.read_text(encoding="utf-8")
        after = embedded(before)
        if after != before:
            document.write_text(after, encoding="utf-8")
            sys.stdout.write(f"updated {document.relative_to(ROOT)}\n")
