"""Jobs of a server: beside online requests and behind them, over a restart, cancelled, and each tenant's own."""

import errno
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.batch_jobs import files, manager
from distaff.serving.batch_jobs.batch_job import BatchJob
from distaff.serving.batch_jobs.errors import JobLockedError
from distaff.serving.batch_jobs.files import NoSuchError
from distaff.serving.batch_jobs.manager import JobManager
from distaff.serving.engine import Engine
from distaff.serving.types import Request, SamplingParams

from ..served import MAX_LEN
from .conftest import IDENTITY, TOKENIZER, Killed, fake_engine


def lines(count: int, url: str = "/v1/completions") -> bytes:
    bodies = [{"prompt": f"say {index}", "max_tokens": 3 + index % 5} for index in range(count)]
    return b"".join(
        json.dumps({"custom_id": f"id-{index}", "method": "POST", "url": url, "body": body}).encode() + b"\n"
        for index, body in enumerate(bodies)
    )


class Server:
    """An engine in a thread of its own, with the jobs of a folder; `stop` and a new one is a restart."""

    def __init__(self, folder: Path, step_seconds: float = 0.0) -> None:
        self.engine: Engine = fake_engine()
        step = self.engine.step

        def slower() -> bool:
            time.sleep(step_seconds)
            return step()

        self.engine._rounds._step = slower
        self.manager = JobManager(
            self.engine, TOKENIZER, folder, model="fake", identity=IDENTITY, max_batch=8, context=MAX_LEN
        )
        self.engine.start()

    def send(self, data: bytes, tenant: str = "") -> str:
        id, path = self.manager.files.new_path()
        path.write_bytes(data)
        self.manager.files.add(id, "in.jsonl", "batch", tenant)
        return id

    def wait(self, id: str, *, timeout: float, seen: BatchJob | None = None) -> BatchJob:
        """The job once it has ended or differs from `seen`, or `timeout` seconds later as it is then."""
        until = time.monotonic() + timeout
        while not (job := self.manager.get(id)).ended and (seen is None or job == seen) and time.monotonic() < until:
            time.sleep(0.005)
        return job

    def stop(self) -> None:
        self.manager.close()
        self.engine.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.manager.start()
    yield made
    made.stop()


def content(server: Server, id: str | None) -> list[dict[str, Any]]:
    assert id is not None
    return [json.loads(line) for line in server.manager.files.path(id).read_bytes().splitlines()]


def test_a_job_completes_and_its_files_are_there(server: Server) -> None:
    sent = server.send(lines(20) + lines(1, "/v1/chat/completions").replace(b"id-0", b"wrong") + b"nonsense\n")
    job = server.manager.create(sent, "/v1/completions", metadata={"for": "you"})
    assert job.status == "validating"
    done = server.wait(job.id, timeout=30)
    assert (done.status, done.total, done.completed, done.failed) == ("completed", 22, 20, 2)
    assert [row["custom_id"] for row in content(server, done.output_file_id)] == [f"id-{index}" for index in range(20)]
    codes = [row["error"]["code"] for row in content(server, done.error_file_id)]
    assert codes == ["mismatched_url", "invalid_json"]
    told = done.to_dict()
    assert told["object"] == "batch" and told["completed_at"] >= told["created_at"] and told["failed_at"] is None
    assert told["request_counts"] == {"total": 22, "completed": 20, "failed": 2} and told["metadata"] == {"for": "you"}
    assert [each.id for each in server.manager.files.all() if each.id == done.output_file_id] == [done.output_file_id]
    assert not list(server.manager._folder.glob("*.journal"))


@pytest.mark.slow
def test_a_restart_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "SHOWN_SECONDS", 0.02)
    first = Server(tmp_path, step_seconds=0.02)
    first.manager.start()
    job = first.manager.create(first.send(lines(60)), "/v1/completions")
    seen = job
    while not 5 < seen.completed < 50:
        seen = first.wait(job.id, timeout=5, seen=seen)
        assert not seen.ended
    first.stop()
    second = Server(tmp_path)
    assert second.manager.get(job.id).status == "in_progress"
    second.manager.start()
    done = second.wait(job.id, timeout=30)
    rows = content(second, done.output_file_id)
    second.stop()
    whole = Server(tmp_path / "whole")
    whole.manager.start()
    again = whole.manager.create(whole.send(lines(60)), "/v1/completions")
    assert rows == content(whole, whole.wait(again.id, timeout=30).output_file_id)
    whole.stop()


def test_online_requests_come_first(tmp_path: Path) -> None:
    """While a job has more than fills the batch, a request that comes is answered before most of it."""
    server = Server(tmp_path, step_seconds=0.005)
    server.manager.start()
    job = server.manager.create(server.send(lines(100)), "/v1/completions")
    while server.wait(job.id, timeout=0.05).status == "validating":
        pass
    answer = server.engine.submit(Request((1, 2, 3), SamplingParams(max_tokens=4, seed=0))).completion()
    assert answer.usage.completion_tokens > 0 and answer.timings.queue < 0.2
    assert server.manager.get(job.id).completed < 90
    server.stop()


def test_a_short_job_does_not_wait_for_a_long_one(tmp_path: Path) -> None:
    """Nor for those that another tenant has in plenty."""
    server = Server(tmp_path, step_seconds=0.005)
    sent = server.send(lines(150), tenant="many")
    long = [server.manager.create(sent, "/v1/completions", tenant="many") for _ in range(6)]
    server.manager.start()
    short = server.manager.create(server.send(lines(3)), "/v1/completions")
    assert server.wait(short.id, timeout=30).status == "completed"
    states = [server.manager.get(job.id, "many").status for job in long]
    assert "completed" not in states and states.count("validating") == 4
    server.stop()


def test_cancelled_it_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "SHOWN_SECONDS", 0.02)
    server = Server(tmp_path, step_seconds=0.02)
    server.manager.start()
    job = server.manager.create(server.send(lines(60)), "/v1/completions")
    seen = job
    while seen.completed < 5:
        seen = server.wait(job.id, timeout=5, seen=seen)
    server.manager.cancel(job.id)
    done = server.wait(job.id, timeout=10)
    assert done.status == "cancelled" and 5 <= done.completed < 60
    assert len(content(server, done.output_file_id)) == done.completed
    assert server.manager.cancel(job.id) == done
    server.stop()


def test_a_cancelled_job_stays_cancelled(tmp_path: Path) -> None:
    """Whatever its runner says of it at the same time, and killed between its output and the last word on it."""
    first = Server(tmp_path)
    job = first.manager.create(first.send(lines(5)), "/v1/completions")
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(first.manager._change, job.id, status="in_progress", completed=n) for n in range(40)]
        first.manager.cancel(job.id)
        assert all(each.result() for each in told)
    assert first.manager.get(job.id).status == "cancelling"
    first.manager._end = lambda job, store, manifest: None  # killed there
    first.manager._run(first.manager.get(job.id))
    first.stop()
    second = Server(tmp_path)
    second.manager.start()
    assert second.wait(job.id, timeout=10).status == "cancelled"
    assert second.manager.cancel(job.id).status == "cancelled"
    second.stop()


@pytest.mark.parametrize("calls", range(4))
def test_killed_at_the_end_of_a_job_no_file_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Before and behind the move of each file, and before what is known of it is written."""
    first, left = Server(tmp_path), calls
    job = first.manager.create(first.send(lines(5) + b"nonsense\n"), "/v1/completions")

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "move", dying(files.shutil.move))
        patch.setattr(files, "write_json", dying(files.write_json))
        with pytest.raises(Killed):
            first.manager._run(job)
    first.stop()
    second = Server(tmp_path)
    second.manager.start()
    done = second.wait(job.id, timeout=10)
    assert done.status == "completed"
    assert len(content(second, done.output_file_id)) == 5 and len(content(second, done.error_file_id)) == 1
    listed = {each.id for each in second.manager.files.all()}
    assert {done.output_file_id, done.error_file_id} < listed
    second.stop()


def test_what_came_of_a_file_is_gone_after_a_kill(tmp_path: Path) -> None:
    """And nothing else, not even an output on its way to the files."""
    first = Server(tmp_path)
    sent, (_, half) = first.send(lines(1)), first.manager.files.new_path()
    left = [half, half.with_name("tmpx1y2"), half.with_name(f".{half.stem}.json.partial")]
    adopted = first.manager.files.path("file-0123456789abcdef01234567-output")
    for path in (*left, adopted):
        path.write_text("x")
    first.stop()
    second = Server(tmp_path)
    kept = {path.name for path in half.parent.iterdir()}
    assert kept == {f"{sent}.content", f"{sent}.json", adopted.name}
    second.stop()


def test_a_full_disk_fails_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until there is room."""
    monkeypatch.setattr(manager, "_RETRY_SECONDS", 0.01)
    server, write, left = Server(tmp_path), manager.write_json, 5

    def full(path: Path, value: Any) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, value)

    job = server.manager.create(server.send(lines(5)), "/v1/completions")
    monkeypatch.setattr(manager, "write_json", full)
    server.manager.start()
    done = server.wait(job.id, timeout=10)
    assert left < 0 and (done.status, done.completed) == ("completed", 5)
    server.stop()


def test_one_server_has_a_folder(server: Server, tmp_path: Path) -> None:
    with pytest.raises(JobLockedError, match="another server keeps its batches here; give this one a folder"):
        Server(tmp_path)


def test_tenants_do_not_see_each_other(server: Server) -> None:
    sent = server.send(lines(1), tenant="a")
    with pytest.raises(NoSuchError):
        server.manager.create(sent, "/v1/completions", tenant="b")
    job = server.manager.create(sent, "/v1/completions", tenant="a")
    for call in (server.manager.get, server.manager.cancel):
        with pytest.raises(NoSuchError, match="there is no batch"):
            call(job.id, "b")
    assert server.manager.all("b") == [] and [each.id for each in server.manager.all("a")] == [job.id]
    with pytest.raises(NoSuchError):
        server.manager.files.get("../jobs/x", "a")
    with pytest.raises(InvalidParameterError, match="endpoint is '/v1/responses'"):
        server.manager.create(sent, "/v1/responses", tenant="a")


def test_a_file_that_is_gone_fails_the_job(server: Server, tmp_path: Path) -> None:
    sent = server.send(lines(1))
    server.manager.files.path(sent).unlink()
    done = server.wait(server.manager.create(sent, "/v1/completions").id, timeout=10)
    assert done.status == "failed" and done.error is not None
    assert done.error.startswith(f"{sent}: there is no such file")  # and not where the server keeps it
    assert done.to_dict()["errors"]["data"][0]["message"] == done.error
