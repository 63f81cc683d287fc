"""The validation pass: reads the whole input once, and remembers of each line a few bytes."""

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .errors import LineError
from .line import Ids, Line

SHOWN = 20
"""Problems that are kept word by word."""


@dataclass
class Scan:
    """What the whole input is.

    Attributes:
        lines: that hold something, bad ones included; blank ones are none.
        digest: SHA-256 over all lines, in hexadecimal.
        problems: lines that are no request, by code.
        shown: the first of them: where, code, message.
        keys: first 8 bytes of each line's key, at index number - 1; 0 where nothing stands.
        ids: which names come twice.
    """

    lines: int = 0
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

    def forget(self, line: Line) -> None:
        """Takes a problem back that was counted."""
        problem = line.problem
        assert problem is not None
        self.problems[problem.code] -= 1
        self.problems += Counter()  # drops what is 0
        self.shown = [each for each in self.shown if each[0] != line.where]


class KnownIds:
    """Names in 8 bytes for each, and the numbers of the lines whose name an earlier line has."""

    def __init__(self, hashes: Sequence[int] = ()) -> None:
        self._all = np.sort(np.asarray(hashes, np.uint64))
        again = self._all[1:][self._all[1:] == self._all[:-1]]
        self._may_repeat = {int(value) for value in again}
        self._repeating = array("Q")

    def find_repeating(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Reads all lines once more, where some may have the same name; those whose name is not the first."""
        seen: set[str] = set()
        for line in lines if self._may_repeat else ():
            name = line.custom_id
            if name is None or _hash(name) not in self._may_repeat:
                continue
            if name in seen:
                self._repeating.append(line.number)
                yield line
            seen.add(name)

    def is_repeating(self, number: int) -> bool:
        """Whether an earlier line has the name of this one."""
        at = bisect_left(self._repeating, number)
        return at < len(self._repeating) and self._repeating[at] == number

    def has(self, custom_id: str) -> bool:
        """Whether some line may be called that."""
        value = np.uint64(_hash(custom_id))
        at = int(np.searchsorted(self._all, value))
        return at < len(self._all) and bool(self._all[at] == value)


def scan_input(lines: Iterable[Line], ids: Ids = Ids.FAIL, check: Callable[[Line], None] = lambda line: None) -> Scan:
    """Reads all lines, and where some may have the same name a second time.

    Args:
        lines: as often as they are asked for.
        check: raises LineError for a body that cannot be answered.
    """
    found, hashes, total = Scan(), array("Q"), hashlib.sha256()
    for line in lines:
        total.update(line.key)
        found.lines += 1
        found.keys.extend([0] * (line.number - 1 - len(found.keys)))
        found.keys.append(line.short_key)
        if line.custom_id is not None:
            hashes.append(_hash(line.custom_id))
        if line.custom_id is None and ids is Ids.FAIL:
            line = _without_id(line)
        line = _checked(line, check)
        if line.problem is not None:
            found.note(line)
    found.digest, found.ids = total.hexdigest(), KnownIds(hashes)
    for line in found.ids.find_repeating(lines):
        if ids is Ids.FAIL and line.problem is None:
            as_counted = _checked(line, check)
            if as_counted.problem is not None:  # its name is looked at before its body
                found.forget(as_counted)
            found.note(_repeating(line))
    return found


def with_unique_ids(lines: Iterable[Line], known: KnownIds, ids: Ids) -> Iterator[Line]:
    """The lines, or some of them, with names of their own, or with the problem that theirs is not."""
    for line in lines:
        name = line.custom_id
        if name is not None and not known.is_repeating(line.number):
            yield line
        elif ids is Ids.SUFFIX:
            wanted = f"line-{line.number}" if name is None else f"{name}#{line.number}"
            yield replace(line, custom_id=_fresh(wanted, known))
        else:
            yield _without_id(line) if name is None else _repeating(line)


def _fresh(name: str, known: KnownIds) -> str:
    while known.has(name):
        name += "#"
    return name


def _without_id(line: Line) -> Line:
    message = "custom_id is missing, expected a text; --ids suffix names the line"
    return _with_problem(line, LineError("missing_custom_id", message, param="custom_id"))


def _repeating(line: Line) -> Line:
    message = (
        f"custom_id {(line.custom_id or '')[:60]!r} stands in an earlier line too; --ids suffix makes it another one"
    )
    return _with_problem(line, LineError("duplicate_custom_id", message, param="custom_id"))


def _with_problem(line: Line, problem: LineError) -> Line:
    """The first problem of a line is the one that is told."""
    return line if line.problem is not None else replace(line, problem=problem)


def _checked(line: Line, check: Callable[[Line], None]) -> Line:
    if line.problem is not None:
        return line
    try:
        check(line)
    except LineError as problem:
        return replace(line, problem=problem)
    return line


def _hash(custom_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
