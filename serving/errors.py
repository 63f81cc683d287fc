"""Errors of requests that cannot be served."""

from ..backends.errors import UsageError


class EmptyPromptError(UsageError):
    """The prompt holds no token."""


class ContextLengthError(UsageError):
    """The prompt leaves no room in the model's context."""
