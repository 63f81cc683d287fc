"""`--runner ray` with two workers against two shards run by hand, a core each, on an idle machine with Ray installed:
python -m tests.serving.batch_jobs.ray_cost [LINES].

Prints one object: seconds of each from the first line that is computed to the last, without loading, and how many times
as fast as by hand the cluster is.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
MODEL = ("--model", "smollm2-135m-instruct", "--context", "256", "--max-batch", "16", "--kv-memory", "512MB")


def write_input(path: Path, lines: int) -> None:
    with path.open("w") as file:
        for index in range(lines):
            body = {"prompt": f"Tell me about the number {index}. " * (1 + index % 4), "max_tokens": 4 + index % 9}
            line = {"custom_id": f"r{index}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def start(core: str, source: Path, output: Path, *more: str) -> "subprocess.Popen[bytes]":
    program = "from distaff.scripts.main import main; main()"
    command = ["taskset", "-c", core, sys.executable, "-c", program, "batch", str(source), str(output)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([*command, *MODEL, *more], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def seconds(manifest: Path) -> float:
    """From the first run's beginning to the last one's end."""
    runs: list[dict[str, Any]] = json.loads(manifest.read_text())["runs"]
    begins = [datetime.fromisoformat(run["started"]).timestamp() for run in runs]
    return max(begin + run["busy_seconds"] for begin, run in zip(begins, runs, strict=True)) - min(begins)


def main(lines: int) -> None:
    with tempfile.TemporaryDirectory(prefix="distaff-") as name:
        folder = Path(name)
        source, output = folder / "in.jsonl", folder / "hand.jsonl"
        write_input(source, lines)
        processes = [start(str(core), source, output, "--shard", f"{core}/2") for core in (0, 1)]
        assert [process.wait() for process in processes] == [0, 0]
        manifest = "{}.shard-{:05}-of-00002.manifest.json"
        by_hand = max(seconds(folder / manifest.format(output.name, core)) for core in (0, 1))
        assert start("0,1", source, folder / "ray.jsonl", "--runner", "ray", "--workers", "2").wait() == 0
        by_ray = seconds(folder / "ray.jsonl.manifest.json")
        told = {"lines": lines, "by_hand_s": round(by_hand, 1), "ray_s": round(by_ray, 1)}
        print(json.dumps({**told, "times_as_fast": round(by_hand / by_ray, 3)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
