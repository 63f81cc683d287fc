"""The root of every error that Distaff raises on purpose.

A message says what was given, what was expected, and what to do. The command line prints the message alone (the
stack trace needs `--debug`) and exits with `exit_code`.
"""

from typing import ClassVar


class DistaffError(Exception):
    """Something failed that the caller could not have known before: a broken file, a hub out of reach."""

    exit_code: ClassVar[int] = 1


class UsageError(DistaffError):
    """The caller asked for something impossible: an unknown flag value, a prompt longer than the context."""

    exit_code: ClassVar[int] = 2


class UnsupportedError(UsageError):
    """A backend or a loader declines: the message names the value and what is supported."""


class InvalidParameterError(UsageError):
    """A parameter is out of range.

    Args:
        field: name of the parameter, as the user wrote it.
        given: the value found.
        expected: what would have been accepted, in words.
    """

    def __init__(self, field: str, given: object, expected: str) -> None:
        super().__init__(f"{field} is {given!r}, expected {expected}")
        self.field = field
        self.given = given
        self.expected = expected
