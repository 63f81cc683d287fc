"""What can be wrong with a sweep."""

from ...backends.errors import DistaffError, UsageError


class SweepError(UsageError):
    """The sweep cannot be made as it was asked for."""


class NothingFitsError(SweepError):
    """No candidate fits into the memory of the chips, or none can be split that way."""


class SweepFileError(DistaffError):
    """A folder has no sweep, or not one that can be read."""
