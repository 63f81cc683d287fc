"""CPU seconds a token of `distaff batch`, journal included, against `distaff bench offline` on the same requests:
python -m tests.serving.batch_jobs.cpu_cost [ROUNDS] on an idle machine.

Loading and compiling count in neither. The two take turns; prints one object: cpu_ms_per_token of each in each round,
and the ratio of their medians.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
MODEL = ("--model", "smollm2-135m-instruct", "--context", "512", "--max-batch", "32")
WORDS = ("river", "stone", "letter", "winter", "orange", "engine", "market", "violin", "garden", "number")
REQUESTS = 96


def write_requests(folder: Path) -> tuple[Path, Path]:
    """The same prompts and lengths, as both commands read them."""
    rng = random.Random(0)
    plain, batch = folder / "plain.jsonl", folder / "in.jsonl"
    with plain.open("w") as asked, batch.open("w") as lines:
        for index in range(REQUESTS):
            prompt = " ".join(rng.choice(WORDS) for _ in range(rng.randint(20, 200)))
            body: dict[str, Any] = {"prompt": prompt, "max_tokens": rng.randint(16, 96)}
            asked.write(json.dumps(body) + "\n")
            body |= {"temperature": 0, "ignore_eos": True}
            line = {"custom_id": f"r{index}", "method": "POST", "url": "/v1/completions", "body": body}
            lines.write(json.dumps(line) + "\n")
    return plain, batch


def distaff(*arguments: str) -> dict[str, Any]:
    program = "from distaff.scripts.main import main; main()"
    command = [sys.executable, "-c", program, *arguments, *MODEL, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"offline": [], "batch": []}
    with tempfile.TemporaryDirectory(prefix="distaff-") as name:
        folder = Path(name)
        plain, batch = write_requests(folder)
        for number in range(rounds):
            told = distaff("bench", "offline", "--file", str(plain), "--deterministic", "--rounds", "1")
            found["offline"].append(told["cpu_s"] * 1e3 / told["output_tokens"])
            output = folder / f"out-{number}.jsonl"
            distaff("batch", str(batch), str(output))
            manifest = json.loads(output.with_name(output.name + ".manifest.json").read_text())
            (run,), usage = manifest["runs"], manifest["usage"]
            assert usage["completion_tokens"] == told["output_tokens"]
            found["batch"].append(run["cpu_seconds"] * 1e3 / usage["completion_tokens"])
    medians = {name: statistics.median(values) for name, values in found.items()}
    rows = {name: [round(value, 3) for value in values] for name, values in found.items()}
    return {"cpu_ms_per_token": rows, "ratio": round(medians["batch"] / medians["offline"], 4)}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
