"""Answers of compilers, by content."""

from dataclasses import replace
from pathlib import Path

from distaff.backends.compile_job import CompileJob
from distaff.backends.compiler.report import CompileReport, MemoryReport
from distaff.sharding.sweep.compile_cache import CompileCache, content_key

JOB = CompileJob("a:b", {"rows": 1}, "v5e:2x2")


def test_an_answer_is_found_again_and_another_jobs_is_not(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    report = CompileReport("v5e:2x2", "libtpu 0", 1.0, 4, MemoryReport(1, 2, 3), 4, 5, None)
    assert cache.get(JOB) is None
    cache.put(JOB, report)
    assert cache.get(JOB) == report
    assert cache.get(replace(JOB, arguments={"rows": 2})) is None
    cache.put(JOB, {"kind": "hbm", "message": "too much"})
    assert cache.get(JOB) == {"kind": "hbm", "message": "too much"}


def test_what_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    """A file that a crash has cut, or another version's."""
    for text in ("", "{", '{"report": {}}', '{"report": {"memory": 1}}'):
        (tmp_path / f"{content_key(JOB)}.json").write_text(text)
        assert CompileCache(tmp_path).get(JOB) is None


def test_the_key_is_of_the_job_and_the_versions() -> None:
    other = replace(JOB, topology="v6e:2x2")
    assert len({content_key(JOB), content_key(other), content_key(replace(JOB, builder="a:c"))}) == 3
