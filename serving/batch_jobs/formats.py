"""Files of four kinds to lines: OpenAI batch JSONL, plain text, CSV and Parquet."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from ...backends.errors import InvalidParameterError
from .errors import InputError, LineError
from .line import Line, digest_of
from .openai_lines import parse
from .source import expand, open_binary
from .tables import Rows, csv_rows, parquet_rows
from .template import Template
from .text_lines import read_lines

_MARK_LINES = 1024
"""Lines after which a place is noted where reading can begin."""


class Format(StrEnum):
    """Kinds of input files."""

    JSONL = "jsonl"
    TEXT = "text"
    CSV = "csv"
    PARQUET = "parquet"


_SUFFIXES = {".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".json": Format.JSONL, ".txt": Format.TEXT,
             ".csv": Format.CSV, ".parquet": Format.PARQUET}  # fmt: skip
_TABLES: Mapping[Format, Callable[[str, Any, int, int], Rows]] = {Format.CSV: csv_rows, Format.PARQUET: parquet_rows}


class Endpoint(StrEnum):
    """What prompts that are no OpenAI requests are sent as."""

    COMPLETIONS = "completions"
    CHAT = "chat"
    EMBEDDINGS = "embeddings"


_URLS = {Endpoint.COMPLETIONS: "/v1/completions", Endpoint.CHAT: "/v1/chat/completions",
         Endpoint.EMBEDDINGS: "/v1/embeddings"}  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """What to read, and how.

    Attributes:
        places: files, globs or URLs.
        format: None goes by each file's suffix.
        endpoint: as Endpoint.
        prompt_column, template: the prompt of a row of CSV or Parquet; `template` has {column} in it, and {prompt} for
            a line of text.
        id_column: of CSV or Parquet; otherwise rows are named after their number.
        defaults: fields of bodies that do not set them.

    Raises:
        InvalidParameterError: the endpoint is none of the three.
    """

    places: tuple[str, ...]
    format: Format | None = None
    endpoint: str = Endpoint.COMPLETIONS
    prompt_column: str | None = None
    template: str | None = None
    id_column: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.endpoint not in Endpoint:
            raise InvalidParameterError("--endpoint", self.endpoint, " or ".join(Endpoint))


@dataclass(frozen=True)
class Mark:
    """Where in an input a line begins.

    Attributes:
        place: lines before it that hold something.
        number: all lines before it.
        file: index of its file.
        count, offset: lines and bytes before it in its file.
    """

    place: int = 0
    number: int = 0
    file: int = 0
    count: int = 0
    offset: int = 0


class InputFiles:
    """The lines of all files of an input, in order, as often as they are asked for.

    As they are read, it is noted now and then where a line begins, so that a part of a long input is read without what
    stands before it.

    Raises:
        InputError: a file is not there, or nothing says what it is.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self.files = expand(spec.places)
        self._formats = [spec.format or _format_of(file) for file in self.files]
        self._template = None if spec.template is None else Template(spec.template)
        self._url = _URLS[Endpoint(spec.endpoint)]
        self._marks = [Mark()]

    def __iter__(self) -> Iterator[Line]:
        """
        Raises:
            InputError: a file cannot be read, or is not of its kind.
        """
        return self.lines_from(Mark())

    def between(self, first: int, end: int) -> Iterator[Line]:
        """The lines from place `first` to before `end`, where blank lines have none; raises as iterating does."""
        mark = self._marks[bisect_right(self._marks, first, key=lambda each: each.place) - 1]
        return islice(self.lines_from(mark), first - mark.place, end - mark.place)

    def lines_from(self, start: Mark) -> Iterator[Line]:
        """The lines from a noted one on; raises as iterating does."""
        place, number = start.place, start.number
        for index in range(start.file, len(self.files)):
            mark = start if index == start.file else Mark(place, number, index)
            file, count, before = self.files[index], mark.count, number - mark.count
            try:
                with open_binary(file) as data:
                    for count, offset, line in self._read(index, data, mark, before):
                        if place - self._marks[-1].place >= _MARK_LINES:
                            self._marks.append(Mark(place, before + count - 1, index, count - 1, offset))
                        if line is not None:
                            place += 1
                            yield line
            except OSError as error:
                raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
            number = before + count

    def _read(self, index: int, data: Any, mark: Mark, before: int) -> Iterator[tuple[int, int, Line | None]]:
        """The lines of a file from a mark on, behind `before` others: which one it is, where it begins, what it
        holds."""
        kind, file = self._formats[index], self.files[index]
        if kind in _TABLES:
            rows = _TABLES[kind](file, data, mark.count, mark.offset)
            for count, (offset, row) in enumerate(rows, mark.count + 1):
                if count == mark.count + 1:
                    self._check_columns(file, row)
                yield count, offset, self._row(before + count, f"{file}: row {count}", row)
            return
        for count, (offset, data_of) in enumerate(read_lines(data, mark.offset), mark.count + 1):
            yield count, offset, self._line(kind, before + count, f"{file}:{count}", data_of)

    def _line(self, kind: Format, number: int, where: str, data: bytes | LineError) -> Line | None:
        if isinstance(data, LineError):
            return _bad(number, where, data, data.message.encode())
        if not data.strip():
            return None
        if kind is Format.JSONL:
            return parse(number, where, data, self.spec.defaults)
        return self._text(number, where, data)

    def _text(self, number: int, where: str, line: bytes) -> Line:
        try:
            prompt = line.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = LineError("invalid_encoding", f"byte {error.start} is 0x{line[error.start]:02x}, expected UTF-8")
            return _bad(number, where, problem, line)
        return self._prompt(number, where, {"prompt": prompt}, None)

    def _row(self, number: int, where: str, row: Mapping[str, Any]) -> Line:
        custom_id = None if self.spec.id_column is None else row[self.spec.id_column]
        return self._prompt(number, where, row, None if custom_id is None else str(custom_id))

    def _check_columns(self, file: str, row: Mapping[str, Any]) -> None:
        for option, column in (("--prompt-column", self.spec.prompt_column), ("--id-column", self.spec.id_column)):
            if column is not None and column not in row:
                raise InvalidParameterError(option, column, f"a column of {file}, which has {', '.join(row)}")
        if self._template is not None:
            self._template.check(row, file)
        elif self.spec.prompt_column is None:
            raise InputError(
                f"{file} has columns {', '.join(row)}: name the one with the prompt by --prompt-column, or make "
                "prompts by --template"
            )

    def _prompt(self, number: int, where: str, row: Mapping[str, Any], custom_id: str | None) -> Line:
        """The request that a row stands for."""
        try:
            if self._template is not None:
                prompt = self._template.fill(row)
            else:
                prompt = row[self.spec.prompt_column or "prompt"]
                if not isinstance(prompt, str) or not prompt:
                    raise LineError("empty_column", f"the prompt is {prompt!r}, expected a text")
        except LineError as problem:
            return _bad(number, where, problem, repr(sorted(row.items())).encode("utf-8", "surrogatepass"), custom_id)
        spec = self.spec
        asked: dict[str, Any] = {"prompt": prompt}
        if spec.endpoint == Endpoint.CHAT:
            asked = {"messages": [{"role": "user", "content": prompt}]}
        elif spec.endpoint == Endpoint.EMBEDDINGS:
            asked = {"input": prompt}
        body = {**spec.defaults, **asked}
        named = f"line-{number}" if custom_id is None else custom_id
        return Line(number, where, named, self._url, body, digest_of(body))


def _bad(number: int, where: str, problem: LineError, data: bytes, custom_id: str | None = None) -> Line:
    named = f"line-{number}" if custom_id is None else custom_id
    return Line(number, where, named, "", {}, hashlib.sha256(data).digest(), problem)


def _format_of(file: str) -> Format:
    suffix = PurePosixPath(file).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"{file}: nothing says what it is; give --format {' or '.join(Format)}")
    return _SUFFIXES[suffix]
