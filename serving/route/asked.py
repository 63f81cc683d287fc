"""What the router reads of a request: its name, and the beginning of its prompt."""

from dataclasses import dataclass
from functools import cached_property

from .prefix_map import BYTES_PER_TOKEN, blocks_of


@dataclass(frozen=True)
class Asked:
    """
    Attributes:
        beginning: the prompt: a text's UTF-8, or four bytes for each token id. Empty where there is none to know.
        salt: prefixes are shared among requests of the same salt only.
        id: the request's own name; empty where the server makes one.
    """

    beginning: bytes = b""
    salt: bytes = b""
    id: str = ""

    @property
    def tokens(self) -> int:
        """About how many the prompt has."""
        return len(self.beginning) // BYTES_PER_TOKEN

    @cached_property
    def blocks(self) -> tuple[bytes, ...]:
        """What two prompts with the same beginning have in common."""
        return tuple(blocks_of(self.beginning, self.salt))
