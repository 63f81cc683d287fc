"""Texts to train on, packed into rows of one length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int32

PADDING: Final = -1
"""The document of tokens that belong to no text."""


@dataclass(frozen=True)
class Rows:
    """Texts, several in a row where they fit, none in two rows."""

    tokens: Int32[np.ndarray, "R S"]
    documents: Int32[np.ndarray, "R S"]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return int((self.documents != PADDING).sum())


def pack(texts: Sequence[Sequence[int]], size: int) -> Rows:
    """Rows of `size` tokens.

    Longer texts are cut into pieces of that size, each read from nothing; pieces go, the longest first, into the first
    row with room for them. Pieces of a single token teach nothing and are left out.
    """
    pieces = [text[first : first + size] for text in texts for first in range(0, len(text), size)]
    pieces = sorted((piece for piece in pieces if len(piece) > 1), key=len, reverse=True)
    rows: list[list[Sequence[int]]] = []
    room: dict[int, list[int]] = {}  # rows by what is left of them
    for piece in pieces:
        left = min((left for left in room if left >= len(piece)), default=None)
        if left is None:
            rows.append([])
            row, left = len(rows) - 1, size
        else:
            row = room[left].pop()
            if not room[left]:
                del room[left]
        rows[row].append(piece)
        room.setdefault(left - len(piece), []).append(row)
    tokens = np.zeros((len(rows), size), np.int32)
    documents = np.full((len(rows), size), PADDING, np.int32)
    for number, row in enumerate(rows):
        end = 0
        for document, piece in enumerate(row):
            tokens[number, end : end + len(piece)] = piece
            documents[number, end : end + len(piece)] = document
            end += len(piece)
    return Rows(tokens, documents)
