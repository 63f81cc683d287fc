"""What serving costs above the engine, with a real model,

    python -m tests.serving.serve_cost [ROUNDS]

on an idle machine.

`distaff bench offline` and `distaff serve` with 32 clients that stream do the same requests in turns. Prints an object:
cpu_ms_per_token of each in each round (of the server its process alone; loading and compiling count in neither), the
ratio of their medians, and the seconds until the server was ready; of these only the first may have had to compile.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from distaff.serving.client import AsyncClient
from distaff.serving.rpc.protos.distaff.v1 import admin_pb2, admin_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from distaff.scripts.main import main; main()"
MODEL = ("--model", "smollm2-135m-instruct", "--dtype", "bfloat16", "--context", "512", "--max-batch", "32")
CLIENTS, REQUESTS = 32, 96
WORDS = ("river", "stone", "letter", "winter", "orange", "engine", "market", "violin", "garden", "number")


def requests() -> list[dict[str, Any]]:
    chance = random.Random(0)
    return [
        {
            "prompt": " ".join(chance.choice(WORDS) for _ in range(chance.randint(20, 200))),
            "max_tokens": chance.randint(32, 160),
        }
        for _ in range(REQUESTS)
    ]


def offline(path: Path) -> tuple[float, int]:
    """Milliseconds of CPU for each token, and how many tokens there were."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "bench",
        "offline",
        *MODEL,
        "--file",
        str(path),
        "--rounds",
        "1",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return told["cpu_s"] * 1e3 / told["output_tokens"], told["output_tokens"]


async def served(asked: list[dict[str, Any]]) -> tuple[float, int, float]:
    """The same of a server, and the seconds until it was ready."""
    command = [sys.executable, "-c", PROGRAM, "serve", *MODEL, "--port", "0", "--no-http", "--admin"]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        ready = time.monotonic() - began
        async with AsyncClient(line.split()[3].rstrip(",")) as client:
            admin: Any = admin_pb2_grpc.AdminStub(client._channel)
            while not (await admin.GetServerInfo(admin_pb2.GetServerInfoRequest())).warm:
                await asyncio.sleep(0.5)
            await client.generate("warm", max_tokens=4)
            waiting, usage, tokens = iter(asked), psutil.Process(process.pid), 0

            async def work() -> None:
                nonlocal tokens
                for request in waiting:
                    stream = client.generate_stream(**request, temperature=0, ignore_eos=True)
                    async for event in stream:
                        tokens += len(getattr(event, "token_ids", ()))

            before = sum(usage.cpu_times()[:2])
            await asyncio.gather(*(work() for _ in range(CLIENTS)))
            cpu = sum(usage.cpu_times()[:2]) - before
        return cpu * 1e3 / tokens, tokens, ready
    finally:
        process.kill()
        await process.wait()


def measure(rounds: int) -> dict[str, Any]:
    asked = requests()
    costs: dict[str, list[float]] = {"offline": [], "served": []}
    readies: list[float] = []
    with tempfile.TemporaryDirectory(prefix="distaff-") as folder:
        path = Path(folder) / "requests.jsonl"
        path.write_text("".join(json.dumps(request) + "\n" for request in asked))
        for _ in range(rounds):
            cost, tokens = offline(path)
            costs["offline"].append(cost)
            cost, as_many, ready = asyncio.run(served(asked))
            assert as_many == tokens, f"{as_many} tokens were served, {tokens} made offline"
            costs["served"].append(cost)
            readies.append(ready)
    medians = {name: statistics.median(values) for name, values in costs.items()}
    return {
        "cpu_ms_per_token": {name: [round(value, 3) for value in values] for name, values in costs.items()},
        "ratio": round(medians["served"] / medians["offline"], 4),
        "ready_s": [round(ready, 1) for ready in readies],
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 3)))
