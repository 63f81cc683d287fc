"""The beginning of a prompt, out of a request's bytes: what two requests have to share for one to help the other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """What of a request decides which server knows its beginning.

    Attributes:
        beginning: the prompt: a text's UTF-8, or four bytes for each token id. Empty where there is none to know.
        salt: prefixes are shared among requests of the same salt only.
    """

    beginning: bytes = b""
    salt: bytes = b""
