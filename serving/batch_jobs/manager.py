"""Batch jobs of a server: a few at once, beside online traffic and behind it; they survive a restart."""

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...backends.errors import DistaffError, InvalidParameterError
from ...models.tokenizer import Tokenizer
from ..errors import EngineClosedError
from ..http.spelling import Spelling
from .answers import Answers
from .batch_job import BatchJob
from .errors import JobMismatchError, JobStoppedError, LineError, OutputError
from .files import FileStore, NoSuchError, write_json
from .formats import Format, InputFiles, InputSpec, Mark
from .job import Job, JobSpec
from .journal import open_locked
from .line import URLS, Ids, Line
from .local_store import LocalStore
from .prepare import Preparer
from .runner import Answering
from .scan import scan_input

PRIORITY = 1_000_000
"""Of all requests of jobs: whatever comes online runs first."""
_SHARE = 0.5
"""Of the batch that jobs may fill, so that online requests find a place at once."""
_AT_ONCE, _OF_TENANT = 6, 2
"""Jobs that share it, and how many may be one tenant's, so that a short job does not wait until long ones end."""
_TICK = 0.01
SHOWN_SECONDS = 1.0
"""How often a job's counts are told anew."""
_RETRY_SECONDS = 10.0
"""Until a job is tried again that nothing is wrong with: the disk was full, or the engine is gone."""
_PASSING = (OSError, OutputError, JobStoppedError, EngineClosedError)

_log = logging.getLogger(__name__)


class JobManager:
    """Takes jobs in any thread, and runs them in a few of its own.

    Raises:
        JobLockedError: another server has the folder.

    Args:
        engine: whose rounds somebody else does.
        tokenizer: None where only token ids are understood.
        folder: where files and jobs are kept.
        model: what rows call the model.
        identity: of the model, as Job.run takes it.
        max_batch: of the engine.
        context: longest text in tokens.
        served_names: names that `model` may have in a line; none: any.
    """

    def __init__(
        self,
        engine: Answering,
        tokenizer: Tokenizer | None,
        folder: Path,
        *,
        model: str,
        identity: Mapping[str, Any],
        max_batch: int,
        context: int,
        served_names: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._held: int | None = open_locked(
            folder / "lock", f"{folder}: another server keeps its batches here; give this one a folder of its own"
        )
        self.files = FileStore(folder / "files")
        self._engine, self._tokenizer, self._model, self._identity = engine, tokenizer, model, identity
        self._capacity = max(1, int(_SHARE * max_batch))
        self._context, self._served_names = context, tuple(served_names)
        self._folder = folder / "jobs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._writing = threading.Lock()  # held while a job changes, on the disk too; reading waits for no disk
        self._jobs: dict[str, BatchJob] = {}
        for path in self._folder.glob("*.json"):
            if "." not in path.stem:  # otherwise the manifest of one that was killed at its end
                job = BatchJob(**json.loads(path.read_text("utf-8")))
                self._jobs[job.id] = job
        self._closing = False
        self._running: set[str] = set()
        self._reading = threading.Lock()  # one input at a time: what is read holds up the engine's thread
        self._threads: list[threading.Thread] = []

    # What clients ask

    def create(
        self,
        input_file_id: str,
        endpoint: str,
        *,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        tenant: str = "",
    ) -> BatchJob:
        """Takes a job.

        Raises:
            NoSuchError: there is no such file.
            InvalidParameterError: an endpoint that batches do not have.
        """
        if endpoint not in URLS:
            raise InvalidParameterError("endpoint", endpoint, " or ".join(URLS))
        self.files.get(input_file_id, tenant)
        job = BatchJob(
            f"batch_{secrets.token_hex(12)}", input_file_id, endpoint, int(time.time()),
            completion_window=completion_window, metadata=dict(metadata or {}), tenant=tenant,
        )  # fmt: skip
        with self._writing:
            self._put(job)
        return job

    def get(self, id: str, tenant: str = "") -> BatchJob:
        """
        Raises:
            NoSuchError: this tenant has none of that id.
        """
        with self._lock:
            job = self._jobs.get(id)
        if job is None or job.tenant != tenant:
            raise NoSuchError(f"there is no batch {id[:80]!r}")
        return job

    def all(self, tenant: str = "") -> list[BatchJob]:
        """Every job of a tenant, the newest first."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.tenant == tenant]
        return sorted(found, key=lambda job: (-job.created_at, job.id))

    def cancel(self, id: str, tenant: str = "") -> BatchJob:
        """Ends a job; what it has answered goes into its output. Harmless for one that has ended.

        Raises:
            NoSuchError: as `get`.
        """
        self.get(id, tenant)
        return self._change(id, status="cancelling")

    # Running

    def start(self) -> None:
        """Runs what there is, and what comes."""
        for _ in range(_AT_ONCE):
            self._threads.append(threading.Thread(target=self._serve, name="distaff-batch-jobs", daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Stops; jobs go on after the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            try:
                try:
                    self._run(job)
                except _PASSING:
                    raise
                except Exception as error:
                    self._fail(job, error)
            except _PASSING as error:
                if not self._closing:
                    _log.warning("batch %s waits, and is tried again in %g s: %s", job.id, _RETRY_SECONDS, error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._closing, _RETRY_SECONDS)
            with self._changed:
                self._running.remove(job.id)
                self._changed.notify_all()

    def _next(self) -> BatchJob | None:
        """Of the jobs that have not ended and may begin, once there are any: the oldest of those whose tenant has the
        fewest running. None when it is time to go."""
        with self._changed:
            while not self._closing:
                busy = Counter(self._jobs[id].tenant for id in self._running)
                waiting = [
                    job
                    for job in self._jobs.values()
                    if not job.ended and job.id not in self._running and busy[job.tenant] < _OF_TENANT
                ]
                if waiting:
                    job = min(waiting, key=lambda each: (busy[each.tenant], each.created_at, each.id))
                    self._running.add(job.id)
                    return job
                self._changed.wait()
        return None

    def _share(self) -> int:
        """Requests that the engine is to have of each job."""
        return max(1, self._capacity // max(1, len(self._running)))

    def _run(self, job: BatchJob) -> None:
        id = job.id
        files = _BatchFiles(self.files.path(job.input_file_id), job.endpoint, lambda: self._closing)
        preparer = Preparer(None, served_names=self._served_names)
        with self._reading:
            found = scan_input(files, Ids.FAIL, preparer.check)
        store = self._store(id)
        with Job(files, found, store, JobSpec(), resume=True) as running:
            began = job.in_progress_at or int(time.time())
            self._change(id, status="in_progress", total=running.total, in_progress_at=began)
            preparer = Preparer(
                self._tokenizer, context=self._context, now=running.now, served_names=self._served_names,
                priority=PRIORITY,
            )  # fmt: skip
            shown = time.monotonic()

            def on_step() -> None:
                nonlocal shown
                if time.monotonic() - shown > SHOWN_SECONDS:
                    shown = time.monotonic()
                    failed = sum(running.journal.index.failed.values())
                    self._change(id, completed=running.journal.index.done - failed, failed=failed)

            try:
                manifest = running.run(
                    self._engine,
                    preparer,
                    Answers(self._model, Spelling(self._tokenizer)),
                    identity=self._identity,
                    advance=_pause,
                    capacity=self._share,
                    stopping=lambda: self._closing or self._cancelled(id),
                    on_step=on_step,
                ).manifest
            except JobStoppedError as error:
                if not self._cancelled(id) or error.__cause__ is not None:  # closing, or the disk is full
                    raise
                manifest = running.publish("cancelled")
            self._end(job, store, manifest)

    def _store(self, id: str) -> LocalStore:
        return LocalStore(self._folder / f"{id}.output")

    def _cancelled(self, id: str) -> bool:
        return self._jobs[id].status == "cancelling"

    def _end(self, job: BatchJob, store: LocalStore, manifest: Mapping[str, Any]) -> None:
        """Makes files of what was published. Done twice it does nothing, since ids derive from the job's."""
        counts, ids = manifest["request_counts"], {}
        self._change(job.id, status="finalizing", **counts)
        for name, path, kind in (("output", store.output, "completed"), ("error", store.errors, "failed")):
            file_id = f"file-{job.id.removeprefix('batch_')}-{name}"
            if counts[kind]:
                self.files.adopt(path, f"{job.id}_{name}.jsonl", "batch_output", job.tenant, file_id)
            ids[f"{name}_file_id"] = file_id if counts[kind] else None
        self._change(job.id, status=manifest["status"], ended_at=int(time.time()), **ids)
        with contextlib.suppress(OSError):
            store.forget()

    def _fail(self, job: BatchJob, error: Exception) -> None:
        known = isinstance(error, DistaffError)
        _log.warning("batch %s failed: %s", job.id, error, exc_info=not known)
        told = "internal error"
        if isinstance(error, JobMismatchError):
            told = "the server has another model now than when the batch began; create it again"
        elif known:  # in the client's names for what it is about, not the server's
            told = str(error).replace(str(self.files.path(job.input_file_id)), job.input_file_id)
            told = told.replace(str(self._store(job.id)), job.id)
        self._change(job.id, status="failed", ended_at=int(time.time()), error=told)

    def _change(self, id: str, **fields: Any) -> BatchJob:
        """A job with other fields. One that has ended stays as it is, one that is cancelled goes nowhere but there."""
        with self._writing:
            job = self._jobs[id]
            if job.ended:
                return job
            if job.status == "cancelling" and fields.get("status") in ("in_progress", "finalizing"):
                del fields["status"]
            return self._put(replace(job, **fields))

    def _put(self, job: BatchJob) -> BatchJob:
        write_json(self._folder / f"{job.id}.json", asdict(job))
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job


class _BatchFiles(InputFiles):
    """The lines of a batch, whose requests all go to one endpoint; read as long as nobody is `stopping`."""

    def __init__(self, source: Path, endpoint: str, stopping: Callable[[], bool]) -> None:
        super().__init__(InputSpec((str(source),), format=Format.JSONL))
        self._endpoint, self._stopping = endpoint, stopping

    def lines_from(self, start: Mark) -> Iterator[Line]:
        for line in super().lines_from(start):
            if self._stopping():
                raise JobStoppedError("the server is about to end")
            if line.problem is None and line.url != self._endpoint:
                problem = LineError(
                    "mismatched_url", f"url is {line.url}, the batch is for {self._endpoint}", param="url"
                )
                line = replace(line, problem=problem)
            yield line


def _pause() -> bool:
    """The engine has a thread of its own."""
    time.sleep(_TICK)
    return True
