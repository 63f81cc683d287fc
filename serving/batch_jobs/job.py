"""A job from its input to its output, in one run or in many."""

import json
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .answers import Answers
from .cost import Price, cost_of, price_of
from .errors import InputChangedError, JobExistsError, JobMismatchError, JobStoppedError, OutputError
from .feed import WINDOW_LINES, Feed
from .formats import InputFiles
from .line import Ids, Line
from .local_store import LocalStore
from .object_store import ObjectStore
from .prepare import Preparer
from .records import JOB, NO_LINE, Record
from .runner import Answering, Runner
from .scan import Scan, with_unique_ids
from .segments import Segments
from .shard import WHOLE, Shard
from .source import is_url, local_path
from .writer import Writer

_RUN_SECONDS = 5.0
"""How often a run writes down how long it has taken."""

type Store = LocalStore | ObjectStore


def open_store(output: str) -> Store:
    """Where a job's output goes: a path, or a URL."""
    return ObjectStore(output) if is_url(output) else LocalStore(local_path(output))


@dataclass(frozen=True)
class JobSpec:
    """What decides a job's answers, besides its input and the model.

    Attributes:
        ids: what becomes of lines without a name of their own.
        seed: what lines without a seed draw theirs from.
        shard: which part of the input.
        settings: everything else, as JSON: a journal with other settings belongs to another job.
        now: when the job began, where this is a part of one; None for what begins now.
        runner: who begins it, and has to go on with it.
        price: of its chips; None goes by the hardware table.
    """

    ids: Ids = Ids.FAIL
    seed: int = 0
    shard: Shard = WHOLE
    settings: Mapping[str, Any] = field(default_factory=dict)
    now: datetime | None = None
    runner: str = "local"
    price: Price | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        manifest: as it was published.
        fresh: whether this run did something; otherwise it was complete before.
    """

    manifest: dict[str, Any]
    fresh: bool


class Job:
    """One job over an input that was scanned. Use it as a context manager: it holds the lock.

    Attributes:
        journal: what has been answered.
        total: lines of its shard.
        now: when it began, in the first of its runs; chat templates may print it.
        runner: who began it.
        complete: the manifest, where an earlier run came to the end.

    Args:
        files: the input.
        found: what a scan of it found.
        store: where the output goes.
        resume: goes on where an earlier run stopped; begins where nothing is there.
        overwrite: deletes what there is.

    Raises:
        JobExistsError: there is something, and neither was asked for.
        InputChangedError, JobMismatchError: there is a journal of another input or another job.
        JobLockedError: another process works on it.
        OutputError: the output cannot be written.
    """

    def __init__(
        self,
        files: InputFiles,
        found: Scan,
        store: Store,
        spec: JobSpec,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._files, self._found, self._store, self._spec = files, found, store, spec
        first, end = spec.shard.bounds(found.lines)
        self.total = end - first
        self.complete: dict[str, Any] | None = None
        self._edited = False
        self._header: dict[str, Any] = json.loads(json.dumps({
            "input": found.digest, "lines": found.lines, "ids": spec.ids.value, "seed": spec.seed,
            "shard": [spec.shard.index, spec.shard.count], **spec.settings,
        }))  # fmt: skip
        if not (resume or overwrite):
            self._refuse(store.found())
        try:
            self.journal = store.open_journal(lambda record: None if overwrite else self._check(record))
        except OSError as error:
            raise OutputError(f"{store}: cannot be written ({error.strerror or error})") from error
        try:
            self._begin(resume, overwrite)
        except BaseException as error:
            if self.journal.index.header is None and not self.journal.index.done:
                self.journal.remove()  # opening made it
            self.journal.close()
            if isinstance(error, OSError):
                raise OutputError(f"{store}: cannot be written ({error.strerror or error})") from error
            raise

    def _begin(self, resume: bool, overwrite: bool) -> None:
        header, manifest = self.journal.index.header, self._store.read_manifest()
        if self._edited:
            raise self._input_changed()
        if not (resume or overwrite) and (header is not None or manifest is not None):
            self._refuse(self._store.found())  # another process began, or ended, before the lock was ours
        if resume and header is not None:
            if self.journal.index.done and not self.journal.index.runs:
                raise self._beginning_lost()
            self.now, self.runner = datetime.fromisoformat(header["now"]), header["runner"]
            return
        if resume and manifest is not None:  # before the journal is looked at: it may be deleted in part
            self._check_header(manifest["job"], "the output")
            if self._edited:
                raise self._input_changed()
            self.complete = manifest
            self.journal.remove()
            self.now = datetime.fromisoformat(manifest["job"]["now"])
            self.runner = manifest["job"]["runner"]
            return
        if resume and self.journal.index.done:
            raise self._beginning_lost()
        if resume and (there := self._store.found_results()):
            raise JobExistsError(
                f"{self._store}: {', '.join(there)} exists already, and neither journal nor manifest says that it is a "
                "job's; --overwrite replaces it"
            )
        self._store.forget_results()
        # Midnight, so that jobs of one day give the same answers.
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        self.now, self.runner = self._spec.now or today, self._spec.runner
        self.journal.begin({**self._header, "now": self.now.isoformat(), "runner": self.runner})

    def _beginning_lost(self) -> JobMismatchError:
        """Whose the answers are stood there."""
        return JobMismatchError(f"{self._store}: the journal has lost its beginning; --overwrite starts anew")

    def _refuse(self, there: Sequence[str]) -> None:
        if there:
            raise JobExistsError(
                f"{self._store}: {', '.join(there)} exists already; --resume goes on with that job, --overwrite "
                "replaces it"
            )

    def check_model(self, identity: Mapping[str, Any]) -> None:
        """Refuses to go on with another model; notes the one that begins.

        Raises:
            JobMismatchError: names what differs.
        """
        for run in self.journal.index.runs.values():
            _compare(run["model"], json.loads(json.dumps(identity)), f"{self._store}: the journal")

    def pending(self) -> Iterator[Line]:
        """The lines of its shard that have no row yet.

        Raises:
            InputChangedError: the input is not what was scanned.
        """
        keys, count = self._found.keys, 0
        lines = self._files.between(*self._spec.shard.bounds(self._found.lines))
        for line in with_unique_ids(lines, self._found.ids, self._spec.ids):
            count += 1
            if line.number > len(keys) or keys[line.number - 1] != line.short_key:
                raise InputChangedError(f"{line.where} has changed since the job began to read it")
            if line.number not in self.journal.index:
                yield line
        if count != self.total:
            raise InputChangedError(
                f"the input has {count} lines now, and had {self.total} when the job began to read it"
            )

    def run(
        self,
        engine: Answering,
        preparer: Preparer,
        answers: Answers,
        *,
        identity: Mapping[str, Any],
        advance: Callable[[], object],
        capacity: Callable[[], int],
        stopping: Callable[[], bool] = lambda: False,
        on_step: Callable[[], None] = lambda: None,
        details: Callable[[], Mapping[str, Any]] = dict,
        window: int = WINDOW_LINES,
    ) -> Outcome:
        """Answers what has no row yet, and publishes.

        Args:
            identity: of the model, as JSON.
            advance, capacity, stopping: as Runner.
            on_step: called after each step.
            details: what the manifest is to say of this run besides.

        Raises:
            JobStoppedError: it was asked to stop, or the disk is full.
            DistaffError: engine or input failed; what was answered is kept.
        """
        if self.complete is not None:
            return Outcome(self.complete, fresh=False)
        self.check_model(identity)
        name, began = secrets.token_hex(4), time.monotonic()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        noted = began

        def told() -> dict[str, Any]:
            return {
                "run": name, "started": started, "seconds": round(time.monotonic() - began, 3),
                "host": socket.gethostname(), "model": dict(identity), **details(),
            }  # fmt: skip

        def step() -> None:
            nonlocal noted
            if time.monotonic() - noted > _RUN_SECONDS:
                noted = time.monotonic()
                writer.note(told())
            on_step()

        writer = Writer(self.journal, answers, stopping)
        writer.note(told())  # before any answer: whose it is must not be lost where the answer is kept
        feed = Feed(self.pending(), preparer, writer.refuse, window=window)
        try:
            runner = Runner(engine, feed, writer, advance=advance, capacity=capacity, stopping=stopping, on_step=step)
            try:
                ended = runner.run()
            finally:
                feed.close()
                writer.note(told())
                writer.close()
            if not ended:
                raise self._stopped("it was asked to")
            return Outcome(self.publish(), fresh=True)
        except OSError as error:
            raise self._stopped(error.strerror or str(error)) from error

    def publish(self, status: str = "completed") -> dict[str, Any]:
        """Writes output, errors and manifest, and deletes the journal; of a job that is completed it has every line."""
        index = self.journal.index
        assert index.done == self.total or status != "completed", f"{index.done} of {self.total} lines are answered"
        manifest = {**self.manifest(), "status": status}
        self.publish_rows(self.journal.rows(good=True), self.journal.rows(good=False), manifest)
        return manifest

    def publish_rows(self, good: Iterable[bytes], bad: Iterable[bytes], manifest: dict[str, Any]) -> None:
        """The same of rows that others have computed."""
        if isinstance(self.journal, Segments):
            self.journal.check()
        self._store.publish(good, bad, manifest)
        self.journal.remove()

    def manifest(self) -> dict[str, Any]:
        """What the journal says of the job."""
        index = self.journal.index
        failed = sum(index.failed.values())
        runs = list(index.runs.values())
        manifest = {
            "status": "completed",
            "job": index.header,
            "files": list(self._files.files),
            "request_counts": {"total": self.total, "completed": index.done - failed, "failed": failed},
            "errors": dict(sorted(index.failed.items())),
            "usage": {
                "prompt_tokens": index.prompt_tokens, "completion_tokens": index.completion_tokens,
                "total_tokens": index.prompt_tokens + index.completion_tokens,
            },
            "seconds": round(sum(run["seconds"] for run in runs), 3),
            "runs": runs,
        }  # fmt: skip
        return {**manifest, "cost": cost_of(manifest, self._spec.price or price_of(manifest))}

    def close(self) -> None:
        """Lets go of the lock."""
        self.journal.close()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stopped(self, why: str) -> JobStoppedError:
        done = self.journal.index.done
        return JobStoppedError(f"{self._store}: stopped ({why}) behind {done} of {self.total} lines; --resume goes on")

    def _check(self, record: Record) -> None:
        """Is this record of the journal one of this job?"""
        if record.number == NO_LINE:
            if record.code == JOB:
                self._check_header(json.loads(record.row), "the journal")
            return
        keys = self._found.keys
        if record.number > len(keys) or keys[record.number - 1] != record.key:
            raise InputChangedError(
                f"{self._store}: line {record.number} ({record.custom_id}) is answered already and has changed since; "
                "--overwrite answers the new input"
            )

    def _check_header(self, header: Mapping[str, Any], whose: str) -> None:
        kept, given = ({name: value for name, value in each.items() if name not in ("now", "runner", "input", "lines")}
                       for each in (header, self._header))  # fmt: skip
        _compare(kept, given, f"{self._store}: {whose}")
        # Which line it is shows when the records are read.
        self._edited = header["input"] != self._header["input"]

    def _input_changed(self) -> InputChangedError:
        return InputChangedError(
            f"{self._store}: the input has changed since the job began: lines that are not answered yet were edited, "
            "added or taken away; --overwrite answers the new input"
        )


def _compare(kept: Mapping[str, Any], given: Mapping[str, Any], whose: str) -> None:
    """
    Raises:
        JobMismatchError: names the first thing that is not the same.
    """
    for name in dict.fromkeys([*kept, *given]):
        if kept.get(name) != given.get(name):
            raise JobMismatchError(
                f"{whose} is of a job with {name} {kept.get(name)!r}, now it is {given.get(name)!r}; give the same, or "
                "--overwrite"
            )
