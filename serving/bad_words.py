"""Texts that must not come up, as the token sequences that spell them."""

from collections.abc import Iterable

from ..models.tokenizer import Tokenizer


def spellings(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The token sequences of each word at the start of a text and behind a space, each sequence once.

    Tokenizers merge a space into the word behind it, so the two have different tokens. Where one sequence ends in
    another, the shorter one says it all. A word split into other tokens than its usual ones is not found.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        bare = word.lstrip(" ") or word
        found += [tuple(tokenizer.encode(text, add_special=False)) for text in (bare, " " + bare)]
    distinct = [ids for ids in dict.fromkeys(found) if ids]
    return tuple(
        ids for ids in distinct if not any(len(other) < len(ids) and ids[-len(other) :] == other for other in distinct)
    )
