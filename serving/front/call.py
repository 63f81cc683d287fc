"""What a client asks for, in no protocol's words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, no_type_check

from ...backends.errors import InvalidParameterError
from ..types import Kind, SamplingParams

MAX_ID_LEN = 256
"""Characters of a request's name."""
MAX_SECONDS = 10 * 365 * 86400.0


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Attributes:
        messages: {"role", "content", ...} each.
        variables: what else the chat template reads: tools, add_generation_prompt, ...
    """

    messages: tuple[Mapping[str, Any], ...]
    variables: Mapping[str, Any] = field(default_factory=dict)


@no_type_check  # it refuses what it cannot take itself, by name
@dataclass(frozen=True)
class Call:
    """One request of a client.

    Attributes:
        prompt: text, token ids or a conversation.
        params: how the answer is drawn.
        pooling: for Kind.EMBED.
        model: looked at only where the front was given names to serve.
        id: its name; "" lets the front make one. A name that lives already is refused.
        priority: higher runs first.
        queue_timeout: seconds until it must have a slot.
        timeout: seconds until it must have ended.
        cache_salt: prefixes are shared among calls of the same salt only.
        tenant: who it counts for; from authentication, never from the request.
        traceparent: W3C trace context.
        user: who the client says that it asks for; told in the log alone.

    Raises:
        InvalidParameterError: a field that no server could honour.
    """

    prompt: str | tuple[int, ...] | Chat
    params: SamplingParams = SamplingParams()
    kind: Kind = Kind.GENERATE
    pooling: Literal["mean", "last"] = "mean"
    model: str = ""
    id: str = ""
    priority: int = 0
    queue_timeout: float | None = None
    timeout: float | None = None
    cache_salt: str | None = None
    use_prefix_cache: bool = True
    tenant: str = ""
    traceparent: str | None = None
    user: str = ""

    def __post_init__(self) -> None:
        if len(self.id) > MAX_ID_LEN or not self.id.isprintable():
            raise InvalidParameterError("id", self.id[:32], f"at most {MAX_ID_LEN} printable characters")
        for name in ("queue_timeout", "timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
                raise InvalidParameterError(name, seconds, f"seconds from 0 to {MAX_SECONDS:g}")
