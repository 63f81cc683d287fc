"""In which order the lines of a window go to the engine."""

from collections import deque
from collections.abc import Sequence

from .prepare import Prepared

_SHARED = 16
"""Tokens that prompts must have in common to count as of one kind: a page."""


def ordered(window: Sequence[Prepared], *, last: bool = False) -> list[Prepared]:
    """The lines of a window, those whose prompts begin alike together.

    Of the groups, long and short ones take turns, so that the batch has about the same work at any time. Behind the
    `last` window nothing comes: its longest lines go first, so that none of them is alone in the end.
    """
    items = sorted(window, key=lambda item: item.requests[0].prompt)
    groups: list[list[Prepared]] = []
    for item in items:
        if groups and _begin_alike(groups[-1][0], item):
            groups[-1].append(item)
        else:
            groups.append([item])
    groups.sort(key=lambda group: max(item.num_tokens for item in group), reverse=True)
    if not last:
        rest = deque(groups)
        groups = []
        while rest:
            groups.append(rest.popleft() if len(groups) % 2 == 0 else rest.pop())
    return [item for group in groups for item in group]


def _begin_alike(one: Prepared, other: Prepared) -> bool:
    first, second = one.requests[0].prompt, other.requests[0].prompt
    return len(first) >= _SHARED and first[:_SHARED] == second[:_SHARED]
