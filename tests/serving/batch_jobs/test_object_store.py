"""Jobs on an object store: when a machine is lost with its disk another goes on, one writes, the manifest is last."""

import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from distaff.serving.batch_jobs.answers import Answers
from distaff.serving.batch_jobs.errors import JobLockedError, JobStoppedError, LineError
from distaff.serving.batch_jobs.lease import Lease, create
from distaff.serving.batch_jobs.line import Line
from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.object_store import ObjectStore
from distaff.serving.batch_jobs.records import Record
from distaff.serving.batch_jobs.segments import Segments
from distaff.serving.batch_jobs.writer import Writer
from distaff.serving.http.spelling import Spelling

from .conftest import Bench, Killed


@pytest.fixture
def folder() -> Iterator[str]:
    name = f"/batch-{uuid.uuid4().hex}"
    yield name
    fs = fsspec.filesystem("memory")
    if fs.exists(name):
        fs.rm(name, recursive=True)


def memory() -> Any:
    return fsspec.filesystem("memory")


def store_in(folder: str, **seconds: float) -> ObjectStore:
    return ObjectStore(f"memory:/{folder}/out.jsonl", **{"lease_seconds": 0.05, "segment_seconds": 0.02, **seconds})


@pytest.mark.slow
def test_machines_that_vanish_lose_no_answer_and_give_none_twice(
    bench: Bench, sixty: Path, tmp_path: Path, folder: str
) -> None:
    """Nothing of a machine is left but what is on the store: its temporary file and its lease's release are gone."""
    local = LocalStore(tmp_path / "whole.jsonl")
    bench.run(sixty, local)
    rng, killed, total = random.Random(3), 0, bench.steps
    for attempt in range(100):
        left = rng.randint(1, total // 3)

        def die() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        try:
            bench.run(sixty, store_in(folder), resume=attempt > 0, on_step=die)
            break
        except Killed:
            killed += 1
    fs = memory()
    assert killed >= 3
    assert fs.cat_file(f"{folder}/out.jsonl") == local.output.read_bytes()
    assert fs.cat_file(f"{folder}/out.jsonl.errors.jsonl") == local.errors.read_bytes()
    manifest = store_in(folder).read_manifest()
    # A machine that vanished before its first segment has left no sign of its run.
    assert manifest is not None and 2 <= len(manifest["runs"]) <= killed + 1
    assert sorted(path.rsplit("/", 1)[1] for path in fs.find(folder)) == [
        "out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.manifest.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_stopped_it_leaves_nothing_pending_and_its_lease(bench: Bench, sixty: Path, folder: str) -> None:
    store = store_in(folder, segment_seconds=1000.0, lease_seconds=1000.0)
    with pytest.raises(JobStoppedError):
        bench.run(sixty, store, stop_after=20)
    assert [path for path in memory().find(folder) if "segment" in path]
    assert store.found() == ["out.jsonl.journal"]
    bench.run(sixty, store, resume=True)  # at once, however long leases live
    assert store.found() == ["out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.manifest.json"]


def test_without_a_manifest_an_output_is_none(bench: Bench, sixty: Path, folder: str) -> None:
    """Killed between the output and the manifest, the job goes on from its segments."""
    store = store_in(folder)
    publish = store.publish

    def half(good: Any, bad: Any, manifest: Any) -> None:
        publish(good, bad, manifest)
        memory().rm_file(store.manifest)
        raise Killed

    store.publish = half
    with pytest.raises(Killed):
        bench.run(sixty, store)
    whole, steps = memory().cat_file(store.output), bench.steps
    bench.run(sixty, store_in(folder), resume=True)
    assert memory().cat_file(store.output) == whole and store.read_manifest() is not None
    assert bench.steps == steps


def test_a_journal_that_is_deleted_in_part_belongs_to_a_job_that_is_complete(
    bench: Bench, sixty: Path, folder: str
) -> None:
    """Killed behind the manifest, while the segments went, the first one first."""
    store, fs = store_in(folder, segment_seconds=0.0), memory()
    removed, rm_file = 0, fs.rm_file

    def dying(path: str) -> None:
        nonlocal removed
        removed += "segment" in path and store.read_manifest() is not None
        if removed > 1:
            raise Killed
        rm_file(path)

    fs.rm_file = dying
    try:
        with pytest.raises(Killed):
            bench.run(sixty, store)
    finally:
        del fs.rm_file
    whole = fs.cat_file(store.output)
    assert len(fs.glob(f"{store.journal}/segment-*")) > 1
    outcome = bench.run(sixty, store_in(folder), resume=True)
    assert not outcome.fresh and fs.cat_file(store.output) == whole
    assert store.found() == ["out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.manifest.json"]


def test_what_was_answered_waits_for_no_more_when_the_job_is_about_to_stop(folder: str) -> None:
    """A step may take longer than a machine has left, and nobody else puts the segment onto the store."""
    segments, asked = Segments(memory(), folder, segment_seconds=1000.0), [False]
    segments.begin({"job": 1})
    writer = Writer(segments, Answers("m", Spelling(None)), lambda: asked[0])
    writer.refuse(Line(1, "in:1", "a", "", {}, b""), LineError("code", "message"))

    def there(seconds: float) -> int:
        until = time.monotonic() + seconds
        while len(found := memory().glob(f"{folder}/segment-*")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return len(found)

    assert there(0.7) == 1
    asked[0] = True
    assert there(10.0) == 2
    writer.close()
    segments.remove()


def test_a_lease_is_made_once() -> None:
    fs, path = memory(), f"/lease-{uuid.uuid4().hex}"
    assert create(fs, path, b"ours") and not create(fs, path, b"theirs")
    assert create(fs, path, b"ours")  # the answer to our first write may have been lost
    fs.rm_file(path)


def test_a_holder_that_lives_keeps_its_lease(folder: str) -> None:
    first = Lease(memory(), folder, seconds=10.0)
    with pytest.raises(JobLockedError, match="another process works on this job"):
        Lease(memory(), folder, seconds=10.0, sleep=lambda seconds: first.beat())
    slept: list[float] = []
    second = Lease(memory(), folder, seconds=10.0, sleep=slept.append)
    assert second.number == 2 and sum(slept) == pytest.approx(10.0)
    with pytest.raises(JobLockedError, match="has taken this job over"):
        first.check()
    second.release()
    third = Lease(memory(), folder, seconds=10.0, sleep=lambda seconds: pytest.fail("waited"))
    assert third.number == 3
    for each in (first, third):
        each.end()


def test_a_lease_is_kept_while_its_holder_is_busy(folder: str) -> None:
    """Loading a model, or writing an output, takes longer than a lease lasts; nobody calls the journal meanwhile."""
    busy = Segments(memory(), folder, lease_seconds=0.3)
    time.sleep(0.4)
    with pytest.raises(JobLockedError, match="another process works on this job"):
        Lease(memory(), folder, seconds=0.3)
    busy.close()
    Segments(memory(), folder, lease_seconds=1000.0).remove()
    assert memory().find(folder) == []


def test_a_store_that_is_away_for_a_while_costs_no_lease(folder: str) -> None:
    fs, lost = memory(), 3
    lease = Lease(fs, folder, seconds=0.06)
    pipe_file, written = fs.pipe_file, []

    def failing(path: str, data: bytes, **options: Any) -> None:
        nonlocal lost
        lost -= 1
        if lost >= 0:
            raise OSError("unreachable")
        written.append(data)
        pipe_file(path, data, **options)

    fs.pipe_file = failing
    try:
        until = time.monotonic() + 10
        while not written and time.monotonic() < until:
            time.sleep(0.005)
        lease.release()
    finally:
        del fs.pipe_file
    assert len(written) >= 2 and written[-1] == b"released"


def test_a_holder_whose_successor_has_ended_the_job_writes_no_more(folder: str) -> None:
    """All leases are gone by then, and the next job's have the same numbers."""
    slow = Segments(memory(), folder, segment_seconds=1000.0, lease_seconds=0.01)
    slow.begin({"job": 1})
    slow.append(Record(1, "a", "", 5, True, "", 1, 1, b"slow"))
    slow._lease.end()  # its machine stands still
    Segments(memory(), folder, lease_seconds=0.01).remove()
    with pytest.raises(JobLockedError, match="this one stops"):
        slow.sync()
    following = Segments(memory(), folder, lease_seconds=0.01)
    with pytest.raises(JobLockedError, match="this one stops"):
        slow.sync()
    slow.close()
    following.sync()
    following.remove()
    assert memory().find(folder) == []


def test_one_who_has_lost_the_lease_writes_no_more(folder: str) -> None:
    slow = Segments(memory(), folder, segment_seconds=1000.0, lease_seconds=0.01)
    slow.begin({"job": 1})
    slow.append(Record(1, "a", "", 5, True, "", 1, 1, b"slow"))
    slow._lease.end()  # its machine stands still
    other = Segments(memory(), folder, lease_seconds=0.01)
    assert other.index.done == 0 and other.index.header == {"job": 1}
    with pytest.raises(JobLockedError, match="this one stops"):
        slow.sync()
    other.append(Record(1, "a", "", 5, True, "", 1, 1, b"fast"))
    other.sync()
    slow.close()
    other.close()
    third = Segments(memory(), folder)
    assert list(third.rows(good=True)) == [b"fast\n"]
    third.close()
