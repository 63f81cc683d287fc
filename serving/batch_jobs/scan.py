"""The validation pass: reads the whole input once, and remembers of each line a few bytes."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .errors import LineError
from .line import Ids, Line

SHOWN = 20
"""Problems that are kept word by word."""
DUPLICATE = "duplicate_custom_id"


@dataclass
class Scan:
    """What the whole input is.

    Attributes:
        lines: that hold something, bad ones included; blank ones are none.
        last: number of the last of them.
        digest: SHA-256 over all lines, in hexadecimal.
        problems: lines that are no request, by code.
        shown: the first of them: where, code, message.
        keys: first 8 bytes of each line's key, at index number - 1; 0 where nothing stands.
    """

    lines: int = 0
    last: int = 0
    digest: str = ""
    problems: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str, str]] = field(default_factory=list)
    keys: array[int] = field(default_factory=lambda: array("Q"))
    ids: "KnownIds" = field(default_factory=lambda: KnownIds(()))

    @property
    def bad(self) -> int:
        return sum(self.problems.values())

    def note(self, line: Line) -> None:
        """Counts a problem of a line."""
        problem = line.problem
        assert problem is not None
        self.problems[problem.code] += 1
        if len(self.shown) < SHOWN:
            self.shown.append((line.where, problem.code, problem.message))


class KnownIds:
    """Which names come up more than once, in 8 bytes for each; the few that do are compared as texts."""

    def __init__(self, hashes: Sequence[int]) -> None:
        self._all = np.sort(np.asarray(hashes, np.uint64))
        again = self._all[1:][self._all[1:] == self._all[:-1]]
        self._repeated = {int(value) for value in again}

    @property
    def some_may_repeat(self) -> bool:
        return bool(self._repeated)

    def may_repeat(self, custom_id: str) -> bool:
        return _hash(custom_id) in self._repeated

    def has(self, custom_id: str) -> bool:
        """Whether some line may be called that."""
        value = np.uint64(_hash(custom_id))
        at = int(np.searchsorted(self._all, value))
        return at < len(self._all) and bool(self._all[at] == value)


def scan(lines: Iterable[Line], ids: Ids = Ids.FAIL, check: Callable[[Line], None] = lambda line: None) -> Scan:
    """Reads all lines.

    Args:
        check: raises LineError for a body that cannot be answered.
    """
    found, hashes, total = Scan(), array("Q"), hashlib.sha256()
    for line in lines:
        total.update(line.key)
        found.lines += 1
        found.last = line.number
        found.keys.extend([0] * (line.number - 1 - len(found.keys)))
        found.keys.append(line.short_key)
        if line.custom_id is not None:
            hashes.append(_hash(line.custom_id))
        if line.problem is None:
            line = _checked(line, check)
        if line.problem is None and line.custom_id is None and ids is Ids.FAIL:
            line = replace(line, problem=_missing())
        if line.problem is not None:
            found.note(line)
    found.digest, found.ids = total.hexdigest(), KnownIds(hashes)
    return found


def scan_input(lines: Iterable[Line], ids: Ids = Ids.FAIL, check: Callable[[Line], None] = lambda line: None) -> Scan:
    """As `scan`, of lines that can be read twice: where names come up again, a second look says in which lines."""
    found = scan(lines, ids, check)
    if ids is Ids.FAIL and found.ids.some_may_repeat:
        for line in with_unique_ids(lines, found.ids, ids):
            if line.problem is not None and line.problem.code == DUPLICATE:
                found.note(line)
    return found


def with_unique_ids(lines: Iterable[Line], known: KnownIds, ids: Ids) -> Iterator[Line]:
    """The lines with names of their own, or with the problem that theirs is not."""
    seen: set[str] = set()
    for line in lines:
        name = line.custom_id
        if name is not None and known.may_repeat(name):
            if name not in seen:
                seen.add(name)
                yield line
            elif ids is Ids.SUFFIX:
                yield replace(line, custom_id=_fresh(f"{name}#{line.number}", known))
            elif line.problem is not None:
                yield line
            else:
                problem = LineError(
                    DUPLICATE,
                    f"custom_id {name[:60]!r} stands in an earlier line too; --ids suffix makes it another one",
                    param="custom_id",
                )
                yield replace(line, problem=problem)
        elif name is None and ids is Ids.SUFFIX:
            yield replace(line, custom_id=_fresh(f"line-{line.number}", known))
        elif name is None and line.problem is None:
            yield replace(line, problem=_missing())
        else:
            yield line


def _fresh(name: str, known: KnownIds) -> str:
    while known.has(name):
        name += "#"
    return name


def _missing() -> LineError:
    return LineError(
        "missing_custom_id", "custom_id is missing, expected a text; --ids suffix names the line", param="custom_id"
    )


def _checked(line: Line, check: Callable[[Line], None]) -> Line:
    try:
        check(line)
    except LineError as problem:
        return replace(line, problem=problem)
    return line


def _hash(custom_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
