"""The examples of docs/examples/ run as they stand, against `distaff serve` with SmolLM2 where they need a server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Clients, Server

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "docs" / "examples"


def output(*command: str, **variables: str) -> list[str]:
    """The lines that a program prints."""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.splitlines()


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"[{path.name}]({path.name})" in listed for path in EXAMPLES.iterdir() if path.name != "README.md")


def test_offline(smollm2: Path) -> None:
    lines = output(sys.executable, str(EXAMPLES / "offline.py"), str(smollm2))
    assert "Paris" in lines[0] and any("Paris" in line for line in lines[2:])


def test_a_backend_of_ones_own(smollm2: Path) -> None:
    lines = output(sys.executable, str(EXAMPLES / "own_backend.py"))
    assert len(lines) == 2 and "Paris" in lines[0] and "Rome" in lines[1]


def test_python_client(server: Server) -> None:
    text = "\n".join(output(sys.executable, str(EXAMPLES / "client.py"), server.target))
    assert text.count("Paris") >= 2 and "refused because of" in text and "perplexity" in text
    assert text.endswith(" tokens")


def test_the_page_of_the_client(server: Server) -> None:
    page = (ROOT / "docs" / "serving" / "client.md").read_text().replace("127.0.0.1:50051", server.target)
    programs = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    text = "\n".join(output(sys.executable, "-c", "\n".join(programs)))
    assert "Paris" in text and "Finished(index=1" in text and "top_p" in text


def test_the_page_of_serving(server: Server) -> None:
    page = (ROOT / "docs" / "serving.md").read_text().replace("127.0.0.1:50051", server.target)
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert "Paris" in "".join(output(sys.executable, "-c", program))


def test_node_client(clients: Clients, node_modules: Path, server: Server) -> None:
    program = shutil.copy(EXAMPLES / "client.js", node_modules.parent)
    protos = ROOT / "serving" / "rpc" / "protos"
    *said, ending = output("node", str(program), str(protos), server.target, "What is the capital of France?")
    assert "Paris" in "\n".join(said) and "FINISH_REASON_" in ending and ending.endswith("tokens]")


def test_langchain(clients: Clients, server: Server) -> None:
    first, second, third = map(
        json.loads, output(clients.path("python"), str(EXAMPLES / "langchain_cache.py"), server.http)
    )
    assert (first["requests"], second["requests"], third["requests"]) == (1, 0, 1)
    assert first["text"] == second["text"] == third["text"] and "Paris" in first["text"]
    assert third["cached_prompt_tokens"] >= 0.8 * third["prompt_tokens"] > first["cached_prompt_tokens"]
