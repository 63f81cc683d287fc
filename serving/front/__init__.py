"""The engine for an event loop: what gRPC, HTTP and batch jobs call, and nothing of any protocol.

The life of a call:

1. `Front.open` checks the state, the name and the id, and takes a place (admission.py); nothing was tokenised yet.
2. A worker thread makes a Request of it: chat template, tokens, spellings (prompts.py).
3. The engine takes the request, with a Wire as its outbox (relay.py).
4. In each round the engine's thread leaves what it has to tell with the Relay, and wakes the loop once.
5. The loop puts it into each call's Stream, which is bounded, and whose reader takes Admitted, Deltas and Finished.
6. When the engine has let go of the request, its place is free.
"""

from .call import Call, Chat
from .card import ModelCard
from .errors import (
    AuthenticationError,
    CancelledByClientError,
    DeadlineError,
    DrainingError,
    DuplicateIdError,
    ForbiddenError,
    InvalidPromptError,
    NotPossibleError,
    NotReadyError,
    OverloadedError,
    SlowReaderError,
    UnknownModelError,
)
from .events import Admitted, Delta, Event, Finished, Reason
from .front import Front, State
from .limits import FrontLimits, TenantLimits
from .load import Load
from .status import Status, status_of
from .stream import Stream

__all__ = [
    "Admitted",
    "AuthenticationError",
    "Call",
    "CancelledByClientError",
    "Chat",
    "DeadlineError",
    "Delta",
    "DrainingError",
    "DuplicateIdError",
    "Event",
    "Finished",
    "ForbiddenError",
    "Front",
    "FrontLimits",
    "InvalidPromptError",
    "Load",
    "ModelCard",
    "NotPossibleError",
    "NotReadyError",
    "OverloadedError",
    "Reason",
    "SlowReaderError",
    "State",
    "Status",
    "Stream",
    "TenantLimits",
    "UnknownModelError",
    "status_of",
]
