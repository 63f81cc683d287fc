"""Batches through OpenAI's client, against `distaff serve` with SmolLM2: they complete and their files download."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distaff.models.checkpoints import open_checkpoint

from .conftest import ROOT, Clients, Server
from .test_clients import COUNT, ROW, TOKENS

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four prompts, of which one is that of the golden file, and a line that asks for something impossible."""
    prompts = [ROW["prompt"], "One, two, three", "The sea is", "A"]
    bodies: list[dict[str, Any]] = [{"prompt": text, "max_tokens": COUNT, "temperature": 0} for text in prompts]
    bodies[3]["top_p"] = 7
    lines = [
        {"custom_id": f"line {index}", "method": "POST", "url": "/v1/completions", "body": body}
        for index, body in enumerate(bodies)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_batch_completes_and_its_files_download(
    clients: Clients, server: Server, source: Path, smollm2: Path
) -> None:
    seen = clients.program("batch.py", server.http, str(source))
    assert (seen["first"], seen["status"]) == ("validating", "completed")
    assert seen["counts"] == {"total": 4, "completed": 3, "failed": 1} and seen["metadata"] == {"for": "a test"}
    assert seen["input"] == source.read_text()
    rows = [json.loads(row) for row in seen["output"].splitlines()]
    assert [row["custom_id"] for row in rows] == ["line 0", "line 1", "line 2"]
    assert rows[0]["response"]["body"]["choices"][0]["text"] == open_checkpoint(smollm2).tokenizer().decode(TOKENS)
    (bad,) = map(json.loads, seen["errors"].splitlines())
    assert (bad["custom_id"], bad["error"]["param"], bad["response"]["status_code"]) == ("line 3", "top_p", 400)
    assert seen["batches"][0] and seen["files"].count("batch_output") >= 2
    assert seen["cancelled"] in ("cancelling", "completed") and seen["ended"] in ("cancelled", "completed")
    assert seen["refused"][0] == 404 and "there is no file 'file-none'" in seen["refused"][1]
    assert seen["left"].count("batch") == seen["files"].count("batch") - 1


def test_the_page_of_batches(clients: Clients, server: Server, source: Path) -> None:
    page = (ROOT / "docs" / "batch.md").read_text().replace("http://127.0.0.1:8000", server.http)
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    command = [clients.path("python"), "-c", program]
    done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(row)["custom_id"] for row in done.stdout.split("\n") if row] == ["line 0", "line 1", "line 2"]
