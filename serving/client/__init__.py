"""The client of a server, which needs neither JAX nor a model: `Client` blocks, `AsyncClient` awaits."""

from .aio import AsyncClient
from .client import Client
from .errors import (
    AuthenticationError,
    CancelledError,
    DeadlineError,
    DuplicateRequestError,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    ServerError,
    UnavailableError,
    UnknownNameError,
    UnsupportedCallError,
)
from .results import Admitted, Choice, Delta, Embedding, Event, Finished, Load, Model, Result, Score, Timings
from .retry import RetryPolicy
from .stream import AsyncBatchStream, AsyncEventStream, BatchStream, EventStream
from .target import Target

__all__ = [
    "Admitted",
    "AsyncBatchStream",
    "AsyncClient",
    "AsyncEventStream",
    "AuthenticationError",
    "BatchStream",
    "CancelledError",
    "Choice",
    "Client",
    "DeadlineError",
    "Delta",
    "DuplicateRequestError",
    "Embedding",
    "Event",
    "EventStream",
    "Finished",
    "ForbiddenError",
    "InternalError",
    "InvalidRequestError",
    "Load",
    "Model",
    "OverloadedError",
    "Result",
    "RetryPolicy",
    "Score",
    "ServerError",
    "Target",
    "Timings",
    "UnavailableError",
    "UnknownNameError",
    "UnsupportedCallError",
]
