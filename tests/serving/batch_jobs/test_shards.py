"""Shards: each a job of its own, joined they are what one job gives."""

import json
from pathlib import Path

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.batch_jobs.errors import InputError, JobExistsError, JobMismatchError
from distaff.serving.batch_jobs.job import JobSpec, open_store
from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.merge import merge_shards
from distaff.serving.batch_jobs.shard import Shard

from .conftest import Bench


@pytest.mark.slow
def test_parts_joined_are_the_whole(bench: Bench, sixty: Path, tmp_path: Path) -> None:
    whole, output = LocalStore(tmp_path / "whole.jsonl"), str(tmp_path / "out.jsonl")
    expected = bench.run(sixty, whole).manifest
    for index in (2, 0, 1):
        shard = Shard(index, 3)
        bench.spec = JobSpec(shard=shard)
        bench.run(sixty, open_store(shard.name(output)))
    joined = LocalStore(tmp_path / "out.jsonl")
    manifest = merge_shards(output, joined)
    assert joined.output.read_bytes() == whole.output.read_bytes()
    assert joined.errors.read_bytes() == whole.errors.read_bytes()
    assert manifest["request_counts"] == expected["request_counts"] and manifest["usage"] == expected["usage"]
    assert manifest["errors"] == expected["errors"] and len(manifest["runs"]) == 3
    assert json.loads(joined.manifest.read_text()) == manifest
    with pytest.raises(JobExistsError):
        merge_shards(output, joined)
    merge_shards(output, joined, overwrite=True)

    (tmp_path / "out.jsonl.shard-00001-of-00003.manifest.json").unlink()
    with pytest.raises(InputError, match=r"shard-00001-of-00003 is not complete \(1 of 3 are not\)"):
        merge_shards(output, joined, overwrite=True)
    bench.spec = JobSpec(shard=Shard(1, 3), seed=5)
    bench.run(sixty, open_store(Shard(1, 3).name(output)), overwrite=True)
    with pytest.raises(JobMismatchError, match="seed is 0 and 5"):
        merge_shards(output, joined, overwrite=True)


def test_nothing_to_join(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        merge_shards(str(tmp_path / "out.jsonl"), LocalStore(tmp_path / "out.jsonl"))


@pytest.mark.parametrize("total", [0, 1, 2, 7, 60])
def test_every_line_is_in_one_part(total: int) -> None:
    bounds = [Shard(index, 4).bounds(total) for index in range(4)]
    assert [place for first, end in bounds for place in range(first, end)] == list(range(total))


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "0/0", "a/b", "1/2/3"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="--shard is .*I/N"):
        Shard.parse(text)
