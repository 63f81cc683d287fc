"""Every bad input: which line, which reason; the others go on, and the counts add up."""

import csv
import io
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.serving.batch_jobs import formats, tables, text_lines
from distaff.serving.batch_jobs.asked import read_body
from distaff.serving.batch_jobs.errors import InputError, LineError
from distaff.serving.batch_jobs.formats import Format, InputFiles, InputSpec
from distaff.serving.batch_jobs.line import Ids, Line
from distaff.serving.batch_jobs.prepare import Preparer
from distaff.serving.batch_jobs.scan import scan_input, with_unique_ids
from distaff.serving.batch_jobs.template import Template


def a_line(custom_id: str | None = "a", url: str = "/v1/completions", method: str = "POST", **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": {"prompt": "hi", **body}})


def files(path: Path, data: bytes | str, **spec: Any) -> InputFiles:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return InputFiles(InputSpec((str(path),), **spec))


def problems(lines: Sequence[Line]) -> list[tuple[int, str]]:
    return [(line.number, line.problem.code) for line in lines if line.problem is not None]


GOOD = a_line("good")

BROKEN = {
    "json": ("{" + GOOD, "invalid_json", "not JSON"),
    "no object": ("[1, 2]", "invalid_json", "the line is [1, 2], expected an object"),
    "a number that JSON lacks": (
        a_line("x", temperature=0).replace("0", "NaN"),
        "invalid_json",
        "NaN is no JSON number",
    ),
    "too deep": ("[" * 100_000, "invalid_json", "nested too deeply"),
    "no UTF-8": (b'{"custom_id": "\xff"}', "invalid_encoding", "byte 15 is 0xff, expected UTF-8"),
    "no id": (a_line(None), "missing_custom_id", "--ids suffix"),
    "an id that is a number": (GOOD.replace('"good"', "5"), "invalid_custom_id", "custom_id is 5"),
    "method": (a_line("x", method="GET"), "invalid_method", "method is 'GET', expected 'POST'"),
    "url": (a_line("x", url="/v1/responses"), "invalid_url", "url is '/v1/responses', expected /v1/chat/completions"),
    "no body": ('{"custom_id": "x", "method": "POST", "url": "/v1/completions"}', "invalid_body", "body is missing"),
    "another field": (GOOD[:-1] + ', "priority": 1}', "unknown_field", "the line has 'priority'"),
}


@pytest.mark.parametrize(("line", "code", "message"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_broken_line_breaks_no_other(tmp_path: Path, line: str | bytes, code: str, message: str, place: str) -> None:
    bad = line if isinstance(line, bytes) else line.encode()
    data = [a_line(f"good-{index}").encode() for index in range(3)]
    at = {"first": 0, "middle": 2, "last": 3}[place]
    data.insert(at, bad)
    found = files(tmp_path / "in.jsonl", b"\n".join(data))
    scan = scan_input(found)
    assert (scan.lines, scan.bad, dict(scan.problems)) == (4, 1, {code: 1})
    ((where, told, words),) = scan.shown
    assert where.endswith(f"in.jsonl:{at + 1}") and told == code and message in words
    lines = list(with_unique_ids(found, scan.ids, Ids.FAIL))
    assert problems(lines) == [(at + 1, code)] and len(lines) == 4


def test_ends_of_lines_marks_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    """BOM, CRLF, blank lines, and no newline at the end; numbers are those that an editor shows."""
    plain = list(files(tmp_path / "a.jsonl", f"{a_line('a')}\n\n{a_line('b')}\n"))
    windows = list(files(tmp_path / "b.jsonl", f"\ufeff{a_line('a')}\r\n \r\n{a_line('b')}"))
    assert [(line.number, line.custom_id, line.body) for line in plain] == [
        (line.number, line.custom_id, line.body) for line in windows
    ]
    assert [line.number for line in plain] == [1, 3] and problems(windows) == []


def test_a_line_of_five_megabytes_is_a_line(tmp_path: Path) -> None:
    (line,) = files(tmp_path / "in.jsonl", a_line("a", prompt="x" * 5_000_000))
    assert line.problem is None and len(line.body["prompt"]) == 5_000_000


def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1000)
    found = files(tmp_path / "in.jsonl", f"{a_line('a')}\n{'x' * 3_000_000}\n{a_line('b')}\n")
    assert problems(list(found)) == [(2, "line_too_long")]


def test_names_that_come_twice(tmp_path: Path) -> None:
    found = files(tmp_path / "in.jsonl", "\n".join(map(a_line, ["a", "b", "a", None, "a#3", "b"])))
    scan = scan_input(found)
    assert dict(scan.problems) == {"duplicate_custom_id": 2, "missing_custom_id": 1}
    assert problems(list(with_unique_ids(found, scan.ids, Ids.FAIL))) == [
        (3, "duplicate_custom_id"),
        (4, "missing_custom_id"),
        (6, "duplicate_custom_id"),
    ]
    scan = scan_input(found, Ids.SUFFIX)
    lines = list(with_unique_ids(found, scan.ids, Ids.SUFFIX))
    assert [line.custom_id for line in lines] == ["a", "b", "a#3#", "line-4", "a#3", "b#6"] and not scan.bad
    assert [line.key for line in lines] == [line.key for line in found]  # resuming does not see that names were made


def test_a_name_that_comes_twice_is_the_one_problem_that_counts(tmp_path: Path) -> None:
    """The check and the job say the same of a line, and count it once, whatever else is wrong with it."""
    lines = [a_line("a"), *(a_line(name, temperature="hot") for name in ("a", None, "b"))]
    found = files(tmp_path / "in.jsonl", "\n".join(lines))
    scan = scan_input(found, check=Preparer(None).check)
    assert dict(scan.problems) == {"duplicate_custom_id": 1, "missing_custom_id": 1, "invalid_parameter": 1}
    assert sorted(code for _, code, _ in scan.shown) == sorted(scan.problems) and scan.bad == 3
    named = list(with_unique_ids(found, scan.ids, Ids.FAIL))
    assert problems(named) == [(2, "duplicate_custom_id"), (3, "missing_custom_id")]


def write_texts(path: Path, texts: Sequence[str]) -> None:
    """As lines with blank ones between them, as rows, or as rows in groups of five; every third row has two lines."""
    rows = [text if index % 3 else f'é {text},\r\n"so"' for index, text in enumerate(texts)]
    if path.suffix == ".jsonl":
        path.write_text("\ufeff" + "\r\n\n".join(map(a_line, texts)), newline="")
    elif path.suffix == ".txt":
        path.write_text("\ufeff" + "\r\n\n".join(texts) + "\n", newline="")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([["prompt", "n"], *chain.from_iterable(([row, 1], []) for row in rows)])
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"prompt": pyarrow.array(rows, "string")}), path, row_group_size=5)


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "csv", "parquet"])
def test_a_part_is_read_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Every part of three files is what it is in the whole, and little is read that stands before it."""
    monkeypatch.setattr(formats, "_MARK_LINES", 5)
    for name, size in (("a", 23), ("b", 0), ("c", 40)):
        write_texts(tmp_path / f"{name}.{suffix}", [f"{name}{index}" for index in range(size)])
    column = "prompt" if suffix in ("csv", "parquet") else None
    found = InputFiles(InputSpec((str(tmp_path / f"*.{suffix}"),), prompt_column=column))
    whole = list(found)
    assert len(whole) == 63 and len({line.number for line in whole}) == 63 and problems(whole) == []
    made, make = [0], Line.__post_init__

    def counted(self: Line) -> None:
        made[0] += 1
        make(self)

    monkeypatch.setattr(Line, "__post_init__", counted)
    for first in range(64):
        made[0] = 0
        assert list(found.between(first, 63)) == whole[first:]
        assert made[0] <= 63 - first + 5
    assert list(found.between(10, 12)) == whole[10:12] and not list(found.between(7, 7))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_before_a_part_are_not_read(tmp_path: Path, suffix: str) -> None:
    """Neither their bytes nor their row groups."""
    path, read = tmp_path / f"in.{suffix}", {"csv": tables.csv_rows, "parquet": tables.parquet_rows}[suffix]
    write_texts(path, [f"{index} {'x' * 20_000}" for index in range(50)])
    with path.open("rb") as file:
        whole = list(read("in", file, 0, 0))
    for skip in (0, 1, 5, 33, 49):
        with path.open("rb") as file:
            counted = CountedReads(file)
            rows = list(read("in", counted, skip, whole[skip][0]))
        assert rows == whole[skip:] and len(rows) == 50 - skip
        assert counted.total < (50 - skip + 5) * 20_100 + 100_000


class CountedReads(io.RawIOBase):
    """A file that counts the bytes that are read of it."""

    def __init__(self, file: Any) -> None:
        self.total, self._file = 0, file

    def readinto(self, into: Any) -> int:
        count = self._file.readinto(into)
        self.total += count
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def test_an_edit_changes_the_digest(tmp_path: Path) -> None:
    digests = {
        scan_input(files(tmp_path / "in.jsonl", data)).digest
        for data in (
            f"{a_line('a')}\n{a_line('b')}",
            f"{a_line('a')}\n{a_line('c')}",
            f"{a_line('a')}\n{a_line('b', seed=1)}",
            f"{a_line('a')}\n\n{a_line('b')}",
            f"{a_line('a')}\nnonsense",
            f"{a_line('a')}\nnonsense!",
        )
    }
    assert len(digests) == 6
    reordered = json.dumps(dict(reversed(json.loads(a_line("a")).items())))
    assert scan_input(files(tmp_path / "in.jsonl", f"{reordered}\n{a_line('b')}")).digest in digests


@pytest.mark.parametrize(
    ("url", "body", "code", "message"),
    [
        ("/v1/completions", {"prompt": "a", "stream": True}, "unsupported_parameter", "stream is set"),
        ("/v1/completions", {"prompt": "a", "wings": 2}, "unsupported_parameter", "wings"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
        ("/v1/completions", {"prompt": "a", "temperature": 1e9}, "invalid_parameter", "temperature is 1000000000.0"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "9"}, "invalid_parameter", "max_tokens"),
        ("/v1/completions", {}, "invalid_parameter", "prompt"),
        ("/v1/completions", {"prompt": "a", "timeout": 3.0}, "unsupported_parameter", "timeout is set"),
        ("/v1/chat/completions", {"messages": []}, "invalid_parameter", "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "bird", "content": "a"}]},
            "invalid_parameter",
            "messages.0.role",
        ),
        ("/v1/embeddings", {"input": []}, "invalid_parameter", "0 inputs"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, "unsupported_parameter", "dimensions"),
    ],
)
def test_what_cannot_be_honoured_is_named(url: str, body: dict[str, Any], code: str, message: str) -> None:
    line = Line(1, "in:1", "a", url, body, b"")
    with pytest.raises(LineError, match=message) as caught:
        read_body(line)
    assert caught.value.code == code
    assert caught.value.param is not None and caught.value.param.split(".")[0] in ("input", *body, "prompt")


def test_models_are_told_apart_only_where_names_were_given() -> None:
    line = Line(1, "in:1", "a", "/v1/completions", {"prompt": "a", "model": "gpt-9"}, b"")
    assert read_body(line).body.model == "gpt-9"
    assert read_body(line, served_names=["gpt-9", "ours"])
    with pytest.raises(LineError, match="model is 'gpt-9', expected ours") as caught:
        read_body(line, served_names=["ours"])
    assert caught.value.status == 404


def test_a_seed_that_nobody_named_is_the_lines_own() -> None:
    def seed(number: int, job_seed: int = 0, **body: Any) -> int | None:
        line = Line(number, "in", "a", "/v1/completions", {"prompt": "a", **body}, b"")
        return read_body(line, job_seed=job_seed).calls[0].params.seed

    assert seed(1) == seed(1) != seed(2) and seed(1) != seed(1, job_seed=1) and seed(1, seed=7) == 7


def test_text_csv_and_parquet_become_requests(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = {"id": ["p", "q"], "text": ["one", "two, with\nlines"], "stars": [3, None]}
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(table), *zip(*table.values(), strict=True)])
    parquet.write_table(pyarrow.table(table), tmp_path / "in.parquet")
    for suffix in ("csv", "parquet"):
        spec = InputSpec((str(tmp_path / f"in.{suffix}"),), endpoint="chat", template="{text}{{{id}}}", id_column="id",
                         defaults={"max_tokens": 3})  # fmt: skip
        lines = list(InputFiles(spec))
        assert [line.custom_id for line in lines] == ["p", "q"] and problems(lines) == []
        assert lines[1].body == {"max_tokens": 3, "messages": [{"role": "user", "content": "two, with\nlines{q}"}]}
        rated = list(InputFiles(InputSpec((str(tmp_path / f"in.{suffix}"),), template="{stars} stars")))
        assert rated[0].body == {"prompt": "3 stars"} and rated[0].custom_id == "line-1"
    assert problems(rated) == [(2, "empty_column")]
    (tmp_path / "in.txt").write_text("first\n\nsecond {x}\n")
    lines = list(InputFiles(InputSpec((str(tmp_path / "in.txt"),), endpoint="embeddings")))
    assert [(line.custom_id, line.body) for line in lines] == [
        ("line-1", {"input": "first"}),
        ("line-3", {"input": "second {x}"}),
    ]


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ({"template": "{text} {"}, InvalidParameterError, "{column} for a column"),
        ({"template": "{price}"}, InvalidParameterError, "which has id, text"),
        ({"prompt_column": "price"}, InvalidParameterError, "a column of .*in.csv, which has id, text"),
        ({"prompt_column": "text", "id_column": "key"}, InvalidParameterError, "--id-column is 'key'"),
        ({}, InputError, "has columns id, text: name the one with the prompt"),
        ({"endpoint": "speech"}, InvalidParameterError, "--endpoint is 'speech'"),
        ({"format": Format.PARQUET, "prompt_column": "text"}, InputError, "cannot be read as Parquet"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, spec: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(files(tmp_path / "in.csv", "id,text\n1,a\n", **spec))


@pytest.mark.parametrize(
    ("data", "message"),
    [("id,text\n1,a,b\n", "line 2 has more values"), (b"id,text\n1,\xff\n", "UTF-8"), ('id,text\n1,"a\n', "CSV")],
)
def test_a_csv_that_is_none(tmp_path: Path, data: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(files(tmp_path / "in.csv", data, prompt_column="text"))


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    for place in (str(tmp_path / "none.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path), "memory://nothing/*.jsonl"):
        with pytest.raises(InputError, match="there is no such file"):
            InputFiles(InputSpec((place,)))
    with pytest.raises(InputError, match="nothing says what it is; give --format"):
        files(tmp_path / "in.data", "x")
    with pytest.raises(UnsupportedError, match="gopher"):
        InputFiles(InputSpec(("gopher://x/y.jsonl",)))
    found = files(tmp_path / "gone.jsonl", GOOD)
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(InputError, match="is it still there"):
        list(found)


def test_globs_and_urls_are_read_in_order(tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    for index, name in enumerate("ba"):
        (tmp_path / f"{name}.jsonl").write_text(a_line(name) + "\n\n")
        fs.pipe_file(f"/in-order/{name}.jsonl", a_line(name).encode())
        del index
    local = list(InputFiles(InputSpec((str(tmp_path / "*.jsonl"),))))
    assert [(line.number, line.custom_id) for line in local] == [(1, "a"), (3, "b")]
    remote = list(InputFiles(InputSpec(("memory://in-order/*.jsonl",))))
    assert [line.custom_id for line in remote] == ["a", "b"]


def test_braces_of_a_template() -> None:
    assert Template("{{{a}}} {b}").fill({"a": 1, "b": "x"}) == "{1} x"
