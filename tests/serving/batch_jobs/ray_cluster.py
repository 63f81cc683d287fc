"""A job on a local Ray cluster whose workers are shot: python -m tests.serving.batch_jobs.ray_cluster IN OUT SHOTS.

In a process of its own, since Ray leaves threads, processes and warnings behind in whatever imports it. Prints one
object: killed, replaced, runs and counts.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distaff.serving.batch_jobs.formats import InputFiles, InputSpec
from distaff.serving.batch_jobs.job import Job, JobSpec
from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.merge import publish_shards
from distaff.serving.batch_jobs.ray_runner import RayRunner
from distaff.serving.batch_jobs.ray_worker import RayPlan
from distaff.serving.batch_jobs.scan import scan_input

from .conftest import IDENTITY, TOKENIZER, fake_engine

SECONDS = 300.0
"""Most that the job may take: a cluster without room would wait for ever."""


def slow_fake() -> Any:
    """A model in an actor: the fake engine, so slow that journals grow before it ends; leaves its process' number."""
    from distaff.backends.select import select_backend

    from ...golden.harness import GOLDEN, Golden

    engine = fake_engine()
    engine.config = type(engine.config)(**{**vars(engine.config), "context": 128})
    step = engine.step

    def slower() -> bool:
        time.sleep(0.05)
        return step()

    engine.step = slower
    (Path(os.environ["DISTAFF_TEST_ACTORS"]) / str(os.getpid())).touch()
    return SimpleNamespace(
        engine=engine,
        tokenizer=TOKENIZER,
        config=Golden(GOLDEN / "llama31").config,
        backend=select_backend("reference"),
        path=GOLDEN / "llama31",
    )


class Shooter(threading.Thread):
    """Kills a worker whenever so many more lines of journals and of parts that are done are written."""

    def __init__(self, folder: Path, actors: Path, lines: int, shots: int) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self.ended = threading.Event()
        self._folder, self._actors = folder, actors
        rng = random.Random(1)
        self._pick = rng.choice
        self._marks = [lines * (2 * number + rng.random()) / (3 * shots) for number in range(shots)]

    def run(self) -> None:
        while self._marks and not self.ended.wait(0.02):
            written = sum(map(_lines, self._folder.glob("*.shard-*")))
            alive = [path.name for path in self._actors.iterdir() if Path(f"/proc/{path.name}").exists()]
            if alive and written > max(self._marks[0], 1):
                self._marks.pop(0)
                os.kill(int(self._pick(alive)), signal.SIGKILL)
                self.killed += 1


def _lines(path: Path) -> int:
    """0 for what tells about a part, and for a journal that is gone by now."""
    try:
        return 0 if path.suffix == ".json" else path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def main(source: str, output: str, shots: str) -> None:
    import ray  # pyright: ignore[reportMissingImports]

    actors = Path(output).with_name("actors")
    actors.mkdir()
    variables = {"DISTAFF_TEST_ACTORS": str(actors), "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.environ["PYTHONPATH"]}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    files = InputFiles(InputSpec((source,)))
    found = scan_input(files)
    spec = JobSpec(now=datetime(2026, 1, 2))
    until = time.monotonic() + SECONDS
    shooter = Shooter(Path(output).parent, actors, found.lines, int(shots))
    shooter.start()
    with Job(files, found, LocalStore(Path(output)), spec) as job:
        plan = RayPlan(slow_fake, files, found, output, spec, IDENTITY["name"], "float32")
        runner = RayRunner(plan, parts=6, workers=2, stopping=lambda: time.monotonic() > until)
        runner.run()
        manifest = publish_shards(job, output)
    shooter.ended.set()
    told = {"killed": shooter.killed, "replaced": runner.replaced, "runs": len(manifest["runs"])}
    print(json.dumps({**told, "counts": manifest["request_counts"]}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
