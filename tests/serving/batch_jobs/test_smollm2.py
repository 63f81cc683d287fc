"""`distaff batch` on SmolLM2: killed and resumed, its output is that of a run that nothing disturbs, byte for byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOPICS = ("the sea", "old bridges", "how bread is made", "a lost key", "the colour of snow")


def request_line(index: int) -> dict[str, Any]:
    """Mixed: greedy and drawn, several answers, log-probabilities, shared beginnings, embeddings, some of them bad."""
    topic, url = TOPICS[index % len(TOPICS)], "/v1/completions"
    body: dict[str, Any] = {
        "prompt": f"Write about {topic}. {'Be brief. ' * (index % 4)}",
        "max_tokens": 4 + index % 21,
    }
    if index % 4 == 1:
        url = "/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": f"Tell me about {topic}, number {index}."}], "max_tokens": 12}
        body |= {"temperature": 0.7, "top_p": 0.9, "logprobs": True, "top_logprobs": 2} if index % 8 == 1 else {}
    elif index % 10 == 2:
        url, body = "/v1/embeddings", {"input": [f"{topic} {index}", topic * (1 + index % 30)]}
    elif index % 3 == 0:
        body |= {"temperature": 0, "repetition_penalty": 1.2}
    elif index % 7 == 5:
        body |= {"n": 2, "stop": ["\n"]}
    if index % 50 == 49:
        body["top_p"] = 7
    return {"custom_id": f"r{index}", "method": "POST", "url": url, "body": body}


def start(source: Path, output: Path) -> "subprocess.Popen[str]":
    program = "from distaff.scripts.main import main; main()"
    options = [
        "--model",
        "smollm2-135m-instruct",
        "--context",
        "512",
        "--max-batch",
        "8",
        "--resume",
        "--tolerate-errors",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", program, "batch", str(source), str(output), *options],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("lines", "kills"),
    [pytest.param(24, 1, marks=pytest.mark.slow), pytest.param(500, 20, marks=pytest.mark.soak)],
)
def test_killed_and_resumed_it_gives_the_same_bytes(smollm2: Path, tmp_path: Path, lines: int, kills: int) -> None:
    source, rng = tmp_path / "in.jsonl", random.Random(kills)
    source.write_text("".join(json.dumps(request_line(index)) + "\n" for index in range(lines)))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    process = start(source, whole)
    _, errors = process.communicate(timeout=3600)
    assert process.returncode == 0, errors
    journal, killed = tmp_path / "out.jsonl.journal", 0
    for size in sorted(rng.randrange(500, int(0.9 * whole.stat().st_size)) for _ in range(kills)):
        process = start(source, out)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size >= size):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL if rng.random() < 0.8 else signal.SIGTERM)
        process.communicate()
        killed += process.returncode in (-signal.SIGKILL, 75)
    process = start(source, out)
    _, errors = process.communicate(timeout=3600)
    assert process.returncode == 0, errors
    print(f"{lines} lines, ended {killed} times")
    assert killed >= 0.9 * kills and out.read_bytes() == whole.read_bytes()
    for end in (".errors.jsonl",):
        assert out.with_name(out.name + end).read_bytes() == whole.with_name(whole.name + end).read_bytes()
    good = [json.loads(row)["custom_id"] for row in whole.read_text().splitlines()]
    assert good == [f"r{index}" for index in range(lines) if index % 50 != 49]
