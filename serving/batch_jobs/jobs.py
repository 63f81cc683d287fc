"""Batch jobs of a server: one after the other, beside online traffic and behind it; they survive a restart."""

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...backends.errors import DistaffError, InvalidParameterError
from ...models.tokenizer import Tokenizer
from ..errors import EngineClosedError
from ..http.spelling import Spelling
from .answers import Answers
from .errors import JobStoppedError, LineError
from .files import FileStore, NoSuchError, write_json
from .formats import Format, InputFiles, InputSpec
from .job import Job, JobSpec
from .line import URLS, Line
from .local_store import LocalStore
from .prepare import Preparer
from .runner import Answering
from .scan import Ids, scan_input

PRIORITY = 1_000_000
"""Of all requests of jobs: whatever comes online runs first."""
_SHARE = 0.5
"""Of the batch that jobs may fill, so that online requests find a place at once."""
_TICK = 0.01
SHOWN_SECONDS = 1.0
"""How often a job's counts are told anew."""
_ENDED = frozenset(("completed", "failed", "cancelled"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchJob:
    """A job as its owner sees it.

    Attributes:
        status: validating, in_progress, finalizing, completed, failed, cancelling or cancelled, as OpenAI has them.
        total, completed, failed: lines.
        error: why it failed.
    """

    id: str
    input_file_id: str
    endpoint: str
    created_at: int
    status: str = "validating"
    completion_window: str = "24h"
    metadata: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    ended_at: int | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        at = {f"{status}_at": self.ended_at if self.status == status else None for status in sorted(_ENDED)}
        errors = None
        if self.error is not None:
            errors = {
                "object": "list",
                "data": [{"code": "failed", "message": self.error, "line": None, "param": None}],
            }
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "errors": errors,
            "input_file_id": self.input_file_id, "completion_window": self.completion_window, "status": self.status,
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id, "created_at": self.created_at,
            "in_progress_at": self.in_progress_at, "expires_at": None, **at, "request_counts": counts,
            "metadata": dict(self.metadata) or None,
        }  # fmt: skip


class JobManager:
    """Takes jobs in any thread, and runs them in one of its own.

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
        self.files = FileStore(folder / "files")
        self._engine, self._tokenizer, self._model, self._identity = engine, tokenizer, model, identity
        self._capacity = max(1, int(_SHARE * max_batch))
        self._context, self._served_names = context, tuple(served_names)
        self._folder = folder / "jobs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jobs: dict[str, BatchJob] = {}
        for path in self._folder.glob("*.json"):
            job = BatchJob(**json.loads(path.read_text("utf-8")))
            self._jobs[job.id] = job
        self._closing = False
        self._thread: threading.Thread | None = None

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
        job = self.get(id, tenant)
        if not job.ended:
            self._change(job.id, status="cancelling")
        return self.get(id, tenant)

    def wait(self, id: str, tenant: str = "", *, timeout: float, seen: BatchJob | None = None) -> BatchJob:
        """The job once it has ended or differs from `seen`, or `timeout` seconds later as it is then."""
        until = time.monotonic() + timeout
        with self._changed:
            while True:
                job = self._jobs.get(id)
                left = until - time.monotonic()
                if job is None or job.ended or (seen is not None and job != seen) or left <= 0:
                    break
                self._changed.wait(left)
        return self.get(id, tenant)

    # Running

    def start(self) -> None:
        """Runs what there is, and what comes."""
        self._thread = threading.Thread(target=self._serve, name="distaff-batch-jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops; jobs go on after the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        while not self._closing:
            with self._changed:
                waiting = [job for job in self._jobs.values() if not job.ended]
                if not waiting:
                    self._changed.wait(1.0)
                    continue
            job = min(waiting, key=lambda each: (each.created_at, each.id))
            try:
                self._run(job.id)
            except (JobStoppedError, EngineClosedError):
                continue  # closing, or cancelled
            except Exception as error:
                known = isinstance(error, DistaffError)
                _log.warning("batch %s failed: %s", job.id, error, exc_info=not known)
                self._change(job.id, status="failed", ended_at=int(time.time()),
                             error=str(error) if known else "internal error")  # fmt: skip

    def _run(self, id: str) -> None:
        job = self._jobs[id]
        files = _BatchFiles(self.files.path(job.input_file_id), job.endpoint)
        preparer = Preparer(None, served_names=self._served_names)
        found = scan_input(files, Ids.FAIL, preparer.check)
        store = LocalStore(self._folder / f"{id}.output")
        with Job(files, found, store, JobSpec(), resume=True) as running:
            status = "cancelling" if job.status == "cancelling" else "in_progress"
            self._change(id, status=status, total=running.total, in_progress_at=job.in_progress_at or int(time.time()))
            preparer = Preparer(
                self._tokenizer, context=self._context, now=running.now, served_names=self._served_names,
                priority=PRIORITY,
            )  # fmt: skip

            def told() -> None:
                if running.complete is None:
                    failed = sum(running.journal.index.failed.values())
                    self._change(id, completed=running.journal.index.done - failed, failed=failed)

            shown = time.monotonic()

            def on_step() -> None:
                nonlocal shown
                if time.monotonic() - shown > SHOWN_SECONDS:
                    shown = time.monotonic()
                    told()

            try:
                outcome = running.run(
                    self._engine,
                    preparer,
                    Answers(self._model, Spelling(self._tokenizer)),
                    identity=self._identity,
                    advance=_pause,
                    capacity=self._capacity,
                    stopping=lambda: self._closing or self._jobs[id].status == "cancelling",
                    on_step=on_step,
                )
            except JobStoppedError:
                told()
                if self._jobs[id].status == "cancelling":
                    self._change(id, status="finalizing")
                    running.publish("cancelled")
                    self._end(id, store, "cancelled")
                raise
            counts = outcome.manifest["request_counts"]
            self._change(id, status="finalizing", **{name: counts[name] for name in ("total", "completed", "failed")})
            self._end(id, store, "completed")

    def _end(self, id: str, store: LocalStore, status: str) -> None:
        """Makes files of what was published. Done twice it does nothing, since ids derive from the job's."""
        job, ids = self._jobs[id], {}
        for name, path, count in (("output", store.output, job.completed), ("error", store.errors, job.failed)):
            if count and path.exists():
                file_id = f"file-{id.removeprefix('batch_')}-{name}"
                self.files.adopt(path, f"{id}_{name}.jsonl", "batch_output", job.tenant, file_id)
            ids[f"{name}_file_id"] = f"file-{id.removeprefix('batch_')}-{name}" if count else None
        self._change(id, status=status, ended_at=int(time.time()), **ids)
        with contextlib.suppress(OSError):
            store.forget()

    def _change(self, id: str, **fields: Any) -> None:
        with self._lock:
            job = self._jobs[id]
            if job.status == "cancelling" and fields.get("status") == "in_progress":
                del fields["status"]
        self._put(replace(job, **fields))

    def _put(self, job: BatchJob) -> None:
        with self._changed:
            self._jobs[job.id] = job
            write_json(self._folder / f"{job.id}.json", asdict(job))
            self._changed.notify_all()


class _BatchFiles(InputFiles):
    """The lines of a batch, whose requests all go to one endpoint."""

    def __init__(self, source: Path, endpoint: str) -> None:
        super().__init__(InputSpec((str(source),), format=Format.JSONL))
        self._endpoint = endpoint

    def __iter__(self) -> Iterator[Line]:
        for line in super().__iter__():
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
