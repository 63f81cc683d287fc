"""Why a call was not served, or not to its end."""

from ...backends.errors import DistaffError, UsageError


class RetryableError(DistaffError):
    """The same call may succeed later.

    Args:
        message: what happened.
        retry_after: seconds until it is worth trying again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverloadedError(RetryableError):
    """A limit on queue, streams or tokens in flight is reached."""


class DrainingError(RetryableError):
    """The server is going down."""


class NotReadyError(RetryableError):
    """The server is still coming up."""


class InvalidPromptError(UsageError):
    """Text, token ids or messages that no request can be made of.

    Args:
        message: what is wrong with them; nothing of their content.
        field: which of them.
    """

    def __init__(self, message: str, field: str = "prompt") -> None:
        super().__init__(message)
        self.field = field


class DuplicateIdError(UsageError):
    """A call of this id is running."""


class UnknownModelError(UsageError):
    """The call names a model that is not served."""


class DeadlineError(DistaffError):
    """The time that the caller gave was over before there was an answer."""


class CancelledByClientError(DistaffError):
    """The caller ended it before there was an answer."""


class SlowReaderError(DistaffError):
    """The caller did not read what there was for so long that the request was ended."""


class AuthenticationError(DistaffError):
    """Who calls is not known."""


class ForbiddenError(DistaffError):
    """Who calls may not do this."""


class NotPossibleError(DistaffError):
    """The server is not in a state, or not set up, to do this."""
