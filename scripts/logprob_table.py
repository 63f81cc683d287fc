"""Log-probabilities as people read them."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..serving.types import TokenLogprob

_WIDTH = 20  # of a token


def table(entries: "Iterable[TokenLogprob | None]", spell: Callable[[int], str]) -> Iterator[str]:
    """Lines: each token, its log-probability, probability and rank, and the most likely tokens in its place.

    Args:
        entries: None for a token that nothing predicts.
        spell: the text of a token id.
    """
    yield f"{'token':<{_WIDTH}} {'logprob':>9} {'share':>7} {'rank':>6}  most likely"
    for entry in entries:
        if entry is not None:
            top = "  ".join(f"{spell(token)} {_share(value)}" for token, value in entry.top)
            line = f"{spell(entry.token_id):<{_WIDTH}} {entry.logprob:>9.4f} {_share(entry.logprob):>7} {entry.rank:>6}"
            yield f"{line}  {top}".rstrip()


def _share(logprob: float) -> str:
    return f"{math.exp(logprob):.1%}"
