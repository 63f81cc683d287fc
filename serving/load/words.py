"""Random texts, for what takes no token ids: words that are about a token each, whatever the tokenizer."""

import re
from collections.abc import Iterable

WORDS = tuple(
    re.findall(
        r"\w+",
        "time year people way day man thing woman life child world school state family student group country "
        "problem hand part place case week company system program question work number night point home water "
        "room mother area money story fact month lot right study book eye job word business issue side kind "
        "head house service friend father power hour game line end member law car city",
    )
)


def spelled(numbers: Iterable[int]) -> str:
    """The words with these numbers, as a text."""
    return " ".join(WORDS[number] for number in numbers)
