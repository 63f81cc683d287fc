"""Deltas that are sent together because the client asked for it."""

from ..front import Delta


class Chunks:
    """Joins the deltas of each choice.

    Args:
        tokens: least number of tokens to send at once; 0 and 1 send each as it comes.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._waiting: dict[int, list[Delta]] = {}

    def add(self, delta: Delta) -> Delta | None:
        """What is to be sent now, if anything."""
        if self._tokens <= 1:
            return delta
        waiting = self._waiting.setdefault(delta.index, [])
        waiting.append(delta)
        return self.rest(delta.index) if sum(len(each.token_ids) for each in waiting) >= self._tokens else None

    def rest(self, index: int) -> Delta | None:
        """What still waits of a choice."""
        waiting = self._waiting.pop(index, [])
        if not waiting:
            return None
        return Delta(
            index,
            "".join(each.text for each in waiting),
            tuple(token for each in waiting for token in each.token_ids),
            tuple(entry for each in waiting for entry in each.logprobs),
        )
