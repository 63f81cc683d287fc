"""A sweep in a folder: sweep.json is the whole of it, rows.csv and rows.parquet are its rows for other programs."""

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import SweepFileError
from .rows import Row

_NAME = "sweep.json"
_VERSION = 2


@dataclass(frozen=True)
class Sweep:
    """What `plan` found.

    Args:
        asked: the request, as JSON has it. summary: candidates, seconds, versions.
        rows: the best first. pairs: layouts for prefill and decode apart.
    """

    asked: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: list[Row]
    pairs: list[Row]

    def row(self, given: str) -> Row:
        """The row of an id, or of the beginning of one; the first one of "best".

        Raises:
            SweepFileError: none, or several.
        """
        found = self.rows[:1] if given == "best" else [row for row in self.rows if row["id"].startswith(given)]
        if len(found) != 1:
            known = ", ".join(row["id"] for row in (found or self.rows)[:5])
            raise SweepFileError(
                f"id {given!r}: {'several rows' if found else 'no row'} of this sweep; it has {known}, ..."
            )
        return found[0]

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame, nested figures as columns such as decode_ms.links.

        Raises:
            ImportError: pandas is not installed (the extra `dataframe`).
        """
        # Not `import pandas`: type checkers need not have it either.
        return import_module("pandas").DataFrame([flat(row) for row in self.rows])


def flat(row: Row) -> Row:
    """A row without nesting, for tables."""
    found: Row = {}
    for name, value in row.items():
        if name == "mesh":
            found[name] = ",".join(f"{axis}={size}" for axis, size in value.items())
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": each for inner, each in value.items() if not isinstance(each, list | Mapping)}
        elif name != "compiled":
            found[name] = value
    return found


def save(sweep: Sweep, folder: Path) -> list[Path]:
    """Writes all files; the names of those written. Parquet needs the extra `parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / _NAME]
    text = json.dumps(
        {"version": _VERSION, "asked": sweep.asked, "summary": sweep.summary, "rows": sweep.rows, "pairs": sweep.pairs},
        indent=1,
    )
    _replace(written[0], text)
    table = [flat(row) for row in sweep.rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(table)
    written.append(path)
    if find_spec("pyarrow") is not None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        path = folder / "rows.parquet"
        columns = {name: [row.get(name) for row in table] for name in names}
        parquet.write_table(pa.table(columns), path)
        written.append(path)
    return written


def load(folder: Path) -> Sweep:
    """Reads what save wrote.

    Raises:
        SweepFileError: there is no sweep, or it is another version's.
    """
    path = folder / _NAME
    try:
        read = json.loads(path.read_text("utf-8"))
        if read["version"] != _VERSION:
            raise SweepFileError(f"{path}: version {read['version']}, this Distaff reads {_VERSION}; plan it again")
        return Sweep(read["asked"], read["summary"], read["rows"], read["pairs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepFileError(
            f"{folder} has no sweep ({error}); `distaff sweep plan --out {folder}` makes one"
        ) from error


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: a sweep is read while it is verified."""
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(text, "utf-8")
    written.replace(path)
