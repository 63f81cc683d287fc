"""Errors of requests that cannot be served, and of engines that cannot serve."""

from ..backends.errors import DistaffError, UsageError


class EmptyPromptError(UsageError):
    """The prompt holds no token."""


class ContextLengthError(UsageError):
    """The prompt leaves no room in the model's context."""


class CacheTooSmallError(UsageError):
    """The KV cache cannot hold a text as long as this one may become."""


class EngineClosedError(DistaffError):
    """The engine was closed."""


class DeviceError(DistaffError):
    """The device failed while it computed."""
