"""What has to be known of methods to route their calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .asked import Asked


@dataclass(frozen=True)
class Protocol:
    """
    Attributes:
        readers: how to read a request's first message, for each method whose prompts or names are known.
        everywhere: methods whose calls go to all servers, since the router does not remember which one has a request;
            each joins their answers into one.
        repeatable: beginnings of the methods whose calls may be made twice: where a server breaks down amid one that
            has brought nothing yet, another server gets it.
        refused: beginnings of the methods that concern one server alone, with what to do instead.
    """

    readers: Mapping[str, Callable[[bytes], Asked]] = field(default_factory=dict)
    everywhere: Mapping[str, Callable[[Sequence[bytes]], bytes]] = field(default_factory=dict)
    repeatable: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def read(self, method: str, message: bytes) -> Asked:
        """What is known of a request."""
        reader = self.readers.get(method)
        return Asked() if reader is None else reader(message)

    def is_repeatable(self, method: str) -> bool:
        return method.startswith(self.repeatable)

    def refusal(self, method: str) -> str | None:
        """Why calls of a method are not routed, None where they are."""
        return next((why for beginning, why in self.refused.items() if method.startswith(beginning)), None)
