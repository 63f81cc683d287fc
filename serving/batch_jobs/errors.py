"""What ends a batch job, and what makes a line of it bad."""

from typing import ClassVar

from ...backends.errors import DistaffError, UsageError


class InputError(UsageError):
    """The input cannot be read, or is not what its name says."""


class InputChangedError(DistaffError):
    """The input is not the one that the job began with."""


class JobExistsError(UsageError):
    """There is an output or a journal already, and nobody said what to do with it."""


class JobLockedError(DistaffError):
    """Another process works on the same output."""


class JobMismatchError(UsageError):
    """The journal belongs to a job of another model or with other options."""


class OutputError(DistaffError):
    """The output cannot be written."""


class JobStoppedError(DistaffError):
    """The job stopped before its end, and what it has done is kept: `--resume` goes on."""

    exit_code: ClassVar[int] = 75


class LineError(Exception):
    """A line that cannot be answered: it becomes a row of the errors file.

    Args:
        code: one word for tables, such as "invalid_json".
        message: what was found and what was expected.
        param: the field of the body that it is about.
        status: as HTTP has it.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.status = status
