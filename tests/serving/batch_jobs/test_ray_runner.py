"""A local Ray cluster of two workers, whose processes are killed at random: every line is answered once."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distaff.serving.batch_jobs.formats import InputFiles, InputSpec
from distaff.serving.batch_jobs.job import Job, JobSpec
from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.merge import publish_shards
from distaff.serving.batch_jobs.ray_worker import RayPlan, num_parts
from distaff.serving.batch_jobs.scan import scan_input

from .conftest import IDENTITY, TOKENIZER, Bench, fake_engine, request_line, write_lines

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".venv-ray"
RAY = "ray==2.60.0"
LINES = 300


@pytest.mark.parametrize(
    ("lines", "workers", "parts"), [(0, 2, 1), (10, 2, 1), (1000, 2, 10), (1_000_000, 2, 16), (1_000_000, 100, 800)]
)
def test_parts_are_neither_few_nor_small(lines: int, workers: int, parts: int) -> None:
    assert num_parts(lines, workers, part_lines=100) == parts


def slow_fake() -> Any:
    """A model in an actor: the fake engine, 5 ms a step. Its process leaves its number behind."""
    from distaff.backends.select import select_backend

    from ...golden.harness import GOLDEN, Golden

    engine = fake_engine()
    engine.config = type(engine.config)(**{**vars(engine.config), "context": 128})
    step = engine.step

    def slower() -> bool:
        time.sleep(0.005)
        return step()

    engine.step = slower
    folder = Path(os.environ["DISTAFF_TEST_ACTORS"])
    (folder / str(os.getpid())).touch()
    return SimpleNamespace(
        engine=engine,
        tokenizer=TOKENIZER,
        config=Golden(GOLDEN / "llama31").config,
        backend=select_backend("reference"),
        path=GOLDEN / "llama31",
    )


@pytest.fixture(scope="module")
def ray_folder() -> Path:
    """A folder that has Ray alone: what it needs is in the environment. Fetched when it is missing."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = FOLDER / ".installed"
        if not stamp.exists() or stamp.read_text() != RAY:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command = [*pip, "--no-compile", "--upgrade", "--target", str(FOLDER), RAY]
            subprocess.run(command, check=True, timeout=600)
            stamp.write_text(RAY)
    return FOLDER


@pytest.fixture
def cluster(ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two cores of Ray; the folder where actors leave the numbers of their processes."""
    path = os.pathsep.join([str(ROOT), str(ray_folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.syspath_prepend(str(ray_folder))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]

    actors = tmp_path / "actors"
    actors.mkdir()
    variables = {"DISTAFF_TEST_ACTORS": str(actors), "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield actors
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_actors_that_die_lose_no_line_and_answer_none_twice(cluster: Path, tmp_path: Path) -> None:
    from distaff.serving.batch_jobs.ray_runner import RayRunner

    source = write_lines(tmp_path / "in.jsonl", [request_line(index) for index in range(LINES)])
    whole, out = LocalStore(tmp_path / "whole.jsonl"), LocalStore(tmp_path / "out.jsonl")
    Bench().run(source, whole)
    files = InputFiles(InputSpec((str(source),)))
    found = scan_input(files)
    now = datetime(2026, 1, 2)  # as the whole has it
    rng, killed, ended = random.Random(1), [0], threading.Event()

    def kill() -> None:
        """Shoots at a worker every now and then, three times."""
        while killed[0] < 3 and not ended.wait(rng.uniform(1.0, 2.5)):
            alive = [path for path in cluster.iterdir() if Path(f"/proc/{path.name}").exists()]
            if alive and list(tmp_path.glob("out.jsonl.shard-*.journal")):
                os.kill(int(rng.choice(alive).name), signal.SIGKILL)
                killed[0] += 1

    shooter = threading.Thread(target=kill)
    shooter.start()
    try:
        with Job(files, found, out, JobSpec(now=now)) as job:
            plan = RayPlan(slow_fake, files, found, str(out.output), JobSpec(now=now), IDENTITY["name"], "float32")
            until = time.monotonic() + 300  # a cluster without room would wait for ever
            runner = RayRunner(plan, parts=6, workers=2, stopping=lambda: time.monotonic() > until)
            runner.run()
            manifest = publish_shards(job, str(out.output))
    finally:
        ended.set()
        shooter.join()
    print(f"{killed[0]} killed, {runner.replaced} replaced, {len(manifest['runs'])} runs")
    assert killed[0] >= 1 and runner.replaced >= 1
    assert out.output.read_bytes() == whole.output.read_bytes()
    assert manifest["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert not list(tmp_path.glob("out.jsonl.shard-*"))
