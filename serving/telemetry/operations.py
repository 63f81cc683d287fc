"""What OpenTelemetry calls the things that a server does."""

from ..front import Call, Chat
from ..types import Kind

PROVIDER = "distaff"
"""gen_ai.provider.name: there is no well-known one for a server of any model."""
OPERATIONS = {"generate": "text_completion", "chat": "chat", "score": "score", "embed": "embeddings"}
"""gen_ai.operation.name of each kind of request that metrics tell apart; there is no well-known one for a score."""


def operation_of(call: Call) -> str:
    """The same for a call."""
    chats = call.kind is Kind.GENERATE and isinstance(call.prompt, Chat)
    return OPERATIONS["chat" if chats else call.kind.value]
