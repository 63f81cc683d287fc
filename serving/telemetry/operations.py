"""What OpenTelemetry calls the things that a server does."""

from ..front import Call, Chat
from ..types import Kind

PROVIDER = "distaff"
"""gen_ai.provider.name: there is no well-known one for a server of any model."""
OPERATIONS = {"generate": "text_completion", "score": "score", "embed": "embeddings"}
"""gen_ai.operation.name of each kind of request; there is no well-known name for a score."""


def operation_of(call: Call) -> str:
    """The same for a call, which still knows a conversation from a text."""
    if call.kind is Kind.GENERATE and isinstance(call.prompt, Chat):
        return "chat"
    return OPERATIONS[call.kind.value]
