"""Rows of CSV and Parquet files, from any of them on."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ...backends.errors import UnsupportedError
from .errors import InputError
from .text_lines import BOM, MAX_LINE_BYTES

_BATCH_ROWS = 1024

type Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""Rows, each with the byte at which reading can begin with it."""


class _Texts:
    """Lines of a file in UTF-8, their ends included.

    Attributes:
        offset: the byte at which the next one begins.
    """

    def __init__(self, data: Any, offset: int) -> None:
        data.seek(offset)
        self.offset = offset
        self._text = io.TextIOWrapper(data, encoding="utf-8", newline="")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._text)
        self.offset += len(line) if line.isascii() else len(line.encode())
        return line

    def close(self) -> None:
        """Leaves the file, which is its opener's, open."""
        with suppress(ValueError):  # closed already
            self._text.detach()


def csv_rows(file: str, data: Any, skip: int, offset: int) -> Rows:
    """The rows of a CSV file that begin at a byte, or all.

    Args:
        skip: how many stand before that byte.

    Raises:
        InputError: it is not CSV in UTF-8.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    texts = _Texts(data, len(BOM) if data.read(len(BOM)) == BOM else 0)
    try:
        reader = csv.DictReader(texts, strict=True)
        columns = reader.fieldnames
        if skip:
            texts.close()
            texts = _Texts(data, offset)
            reader = csv.DictReader(texts, columns, strict=True)
        begins = texts.offset
        for row in reader:
            if None in row:
                raise InputError(f"{file}: line {reader.line_num} has more values than there are columns")
            yield begins, row
            begins = texts.offset
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as CSV in UTF-8 ({error})") from error
    finally:
        texts.close()


def parquet_rows(file: str, data: Any, skip: int, offset: int) -> Rows:
    """The rows of a Parquet file behind the first `skip`, of which only those of the same row group are read; they
    begin at no byte of their own.

    Raises:
        InputError: it is not Parquet.
        UnsupportedError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnsupportedError(f"{file}: Parquet needs pyarrow; pip install 'distaff[parquet]'") from error
    try:
        table = parquet.ParquetFile(data)
        sizes = [table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)]
        first = 0
        while first < len(sizes) and sizes[first] <= skip:
            skip -= sizes[first]
            first += 1
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(range(first, len(sizes)))):
            for row in batch.slice(skip).to_pylist():
                yield 0, row
            skip = max(0, skip - batch.num_rows)
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: cannot be read as Parquet ({error})") from error
