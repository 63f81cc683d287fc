"""The notebook of docs/examples/ runs, and says what it says there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "examples" / "sweep.ipynb"
RUN = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=120).execute()
nbformat.write(notebook, sys.argv[2])
"""


def told(path: Path) -> list[str]:
    """The text that each cell of code shows."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(output["data"]["text/plain"]) for output in cell["outputs"]) for cell in cells]


@pytest.mark.slow
def test_the_notebook_says_what_it_says_in_the_documents(tmp_path: Path) -> None:
    again = tmp_path / "again.ipynb"
    own = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}  # not in the home folder
    command = [sys.executable, "-c", RUN, NOTEBOOK, again]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert all(told(NOTEBOOK)) and told(again) == told(NOTEBOOK)
