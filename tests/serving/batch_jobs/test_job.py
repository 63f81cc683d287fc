"""A job on the fake engine: what comes out, in which order, and that it is the same however often it was stopped."""

import json
import random
from pathlib import Path

import pytest

from distaff.serving.batch_jobs import journal
from distaff.serving.batch_jobs.errors import (
    InputChangedError,
    JobExistsError,
    JobLockedError,
    JobMismatchError,
    JobStoppedError,
)
from distaff.serving.batch_jobs.job import JobSpec
from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.records import JOB, RUN, parse_record

from ...fakes import continuation, prompt_logprob
from ..served import VOCAB
from .conftest import TOKENIZER, Bench, Killed, request_line, rows, write_lines


def files_of(store: LocalStore) -> tuple[bytes, bytes]:
    return store.output.read_bytes(), store.errors.read_bytes()


@pytest.fixture
def whole(bench: Bench, sixty: Path, tmp_path: Path) -> tuple[bytes, bytes]:
    """What a run that nothing disturbs gives."""
    store = LocalStore(tmp_path / "whole.jsonl")
    bench.run(sixty, store)
    return files_of(store)


def test_answers_come_in_the_order_of_the_input(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    outcome = bench.run(sixty, store)
    good, bad = rows(store.output), rows(store.errors)
    assert [row["custom_id"] for row in good] == [f"id-{index}" for index in range(60) if index not in (18, 40)]
    assert [row["custom_id"] for row in bad] == ["id-18", "id-40"]
    assert [row["error"]["code"] for row in bad] == ["invalid_parameter", "context_length_exceeded"]
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in good)
    assert outcome.fresh and outcome.manifest["request_counts"] == {"total": 60, "completed": 58, "failed": 2}
    assert not store.journal.exists() and json.loads(store.manifest.read_text()) == outcome.manifest
    usages = [row["response"]["body"]["usage"] for row in good]
    assert outcome.manifest["usage"]["total_tokens"] == sum(usage["total_tokens"] for usage in usages)


def test_an_answer_is_the_models(bench: Bench, tmp_path: Path) -> None:
    """The text is computed by hand from prompt and seed."""
    body = {"prompt": "abc", "max_tokens": 5, "seed": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    store = LocalStore(tmp_path / "out.jsonl")
    bench.run(write_lines(tmp_path / "in.jsonl", [line]), store)
    (row,) = rows(store.output)
    text = continuation(TOKENIZER.encode("abc"), 8, 0, windows=(None,), vocab_size=VOCAB)
    assert row["response"]["body"]["choices"][0]["text"] == TOKENIZER.decode(text[3:])


def test_log_probabilities_of_the_prompt_are_in_the_row(bench: Bench, tmp_path: Path) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "seed": 0, "prompt_logprobs": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    store = LocalStore(tmp_path / "out.jsonl")
    bench.run(write_lines(tmp_path / "in.jsonl", [line]), store)
    (choice,) = rows(store.output)[0]["response"]["body"]["choices"]
    first, *others = choice["prompt_logprobs"]
    want = [{str(token): prompt_logprob(token)} for token in TOKENIZER.encode("abc")[1:]]
    assert first is None and choice["logprobs"] is None
    assert [{token: told["logprob"] for token, told in entry.items()} for entry in others] == want


def test_killed_at_random_steps_it_gives_the_same_bytes(
    bench: Bench, sixty: Path, tmp_path: Path, whole: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SYNC_SECONDS", 0.002)
    store, rng = LocalStore(tmp_path / "out.jsonl"), random.Random(5)
    total, bench.steps = bench.steps, 0
    killed = 0
    for attempt in range(100):
        left = rng.randint(1, total // 4)

        def die() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        try:
            bench.run(sixty, store, resume=attempt > 0, on_step=die)
            break
        except Killed:
            killed += 1
    assert killed >= 3 and files_of(store) == whole


@pytest.mark.slow
def test_stopped_it_keeps_what_it_has_and_answers_nothing_twice(
    bench: Bench, sixty: Path, tmp_path: Path, whole: tuple[bytes, bytes]
) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    with pytest.raises(JobStoppedError, match=r"stopped \(it was asked to\) behind \d+ of 60 lines; --resume goes on"):
        bench.run(sixty, store, stop_after=20)
    done = [line.split(b"\t", 2)[1] for line in store.journal.read_bytes().splitlines()]
    journalled = {json.loads(head)[1] for head in done} - {None}
    assert 5 < len(journalled) < 55
    bench.answered.clear()
    bench.run(sixty, store, resume=True)
    assert files_of(store) == whole
    seeds = len(bench.answered)
    assert seeds <= 2 * (60 - len(journalled))  # embeddings here take two requests each


def test_resuming_what_is_complete_does_nothing(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    first = bench.run(sixty, store)
    steps, before = bench.steps, files_of(store)
    again = bench.run(sixty, store, resume=True)
    assert not again.fresh and again.manifest == first.manifest and bench.steps == steps
    assert files_of(store) == before and not store.journal.exists()


@pytest.mark.slow
def test_what_is_there_is_neither_overwritten_nor_joined_unasked(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    store.output.write_text("precious\n")
    with pytest.raises(JobExistsError, match=r"out.jsonl exists already; --resume goes on"):
        bench.run(sixty, store)
    assert store.output.read_text() == "precious\n"
    with pytest.raises(JobExistsError, match="neither journal nor manifest says that it is a job's"):
        bench.run(sixty, store, resume=True)
    assert store.output.read_text() == "precious\n" and not store.journal.exists()
    bench.run(sixty, store, overwrite=True)
    assert len(rows(store.output)) == 58


def test_what_came_before_the_lock_was_ours_is_not_overwritten(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    """Another process has done the whole job, or some of it, since the first look at what there is."""
    store = LocalStore(tmp_path / "out.jsonl")
    with pytest.raises(JobStoppedError):
        bench.run(sixty, store, stop_after=10)
    kept = store.journal.read_bytes()
    late, looks = LocalStore(store.output), [list[str]()]
    late.found = lambda: looks.pop() if looks else store.found()
    with pytest.raises(JobExistsError, match="out.jsonl.journal exists already"):
        bench.run(sixty, late)
    assert store.journal.read_bytes() == kept


def test_whose_an_answer_is_stands_before_it(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    """However soon a run is killed: resumed with another model it would be mixed otherwise."""
    store = LocalStore(tmp_path / "out.jsonl")
    with pytest.raises(JobStoppedError):
        bench.run(sixty, store, stop_after=1)
    records = [parse_record(line) for line in store.journal.read_bytes().splitlines()]
    assert [record.code for record in records[:2] if record is not None] == [JOB, RUN]


def test_an_edited_line_is_named(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    with pytest.raises(JobStoppedError):
        bench.run(sixty, store, stop_after=30)
    lines = [json.loads(line) for line in sixty.read_text().splitlines()]
    head = json.loads(next(line for line in store.journal.read_bytes().splitlines() if b"id-" in line).split(b"\t")[1])
    lines[head[0] - 1]["body"]["user"] = "somebody else"
    write_lines(sixty, lines)
    with pytest.raises(InputChangedError, match=rf"line {head[0]} \({head[1]}\) is answered already and has changed"):
        bench.run(sixty, store, resume=True)


def test_added_lines_are_noticed(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    with pytest.raises(JobStoppedError):
        bench.run(sixty, store, stop_after=10)
    with sixty.open("a") as file:
        file.write(json.dumps(request_line(99)) + "\n")
    with pytest.raises(InputChangedError, match="not answered yet were edited, added or taken away"):
        bench.run(sixty, store, resume=True)


def test_another_seed_is_another_job(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    with pytest.raises(JobStoppedError):
        bench.run(sixty, store, stop_after=10)
    bench.spec = JobSpec(seed=4)
    with pytest.raises(JobMismatchError, match="seed 0, now it is 4"):
        bench.run(sixty, store, resume=True)


def test_one_process_writes(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")

    def second() -> None:
        with pytest.raises(JobLockedError, match="another process works on this job"):
            Bench().run(sixty, LocalStore(store.output), resume=True)
        raise Killed

    with pytest.raises(Killed):
        bench.run(sixty, store, on_step=second)
