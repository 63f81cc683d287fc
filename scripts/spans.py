"""Ranges of whole numbers, as options spell them."""

import re

from ..backends.errors import InvalidParameterError


def parse_span(option: str, text: str) -> tuple[int, int]:
    """Reads "32:384", or one number for both. Raises InvalidParameterError."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if found is None:
        raise InvalidParameterError(option, text, "LOW:HIGH, such as 32:384")
    return int(found[1]), int(found[2] or found[1])
