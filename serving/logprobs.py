"""Log-probabilities of tokens, as callers read them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from jaxtyping import Float, Int

_LOWEST = -9999.0


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, by the model's own logits.

    Attributes:
        token_id: the token at this place.
        logprob: natural logarithm of its probability.
        rank: 1 for the most likely token.
        top: (token id, log-probability) of the most likely tokens, best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(
        cls,
        token_id: int,
        chosen: float,
        rank: int,
        top_ids: Int[np.ndarray, "N"],
        top: Float[np.ndarray, "N"],
        num_top: int,
    ) -> "TokenLogprob":
        """From what the device computed; it ranks more tokens than were asked for, and pads with ids below 0."""
        pairs = zip(top_ids[:num_top].tolist(), top[:num_top].tolist(), strict=True)
        return cls(token_id, chosen, rank, tuple(pair for pair in pairs if pair[0] >= 0))

    def to_dict(self) -> dict[str, Any]:
        top = [{"token_id": token, "logprob": _json(value)} for token, value in self.top]
        return {"token_id": self.token_id, "logprob": _json(self.logprob), "rank": self.rank, "top": top}

    def by_id(self, name: Callable[[int], str]) -> dict[str, dict[str, Any]]:
        """The likeliest tokens and this one, by id, as vLLM has them in JSON.

        Args:
            name: what a token is called.
        """
        ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(self.top, 1)}
        ranked[self.token_id] = (self.logprob, self.rank)
        return {
            str(token): {"logprob": finite(logprob), "rank": rank, "decoded_token": name(token)}
            for token, (logprob, rank) in ranked.items()
        }


@dataclass(frozen=True, eq=False)
class PromptLogprobs(Sequence[TokenLogprob | None]):
    """The log-probability of every token of a prompt: entry i belongs to token i. Entry 0 is None, since nothing
    stands before it to predict it.

    Attributes:
        token_ids: the prompt, P tokens.
        logprobs, ranks: [P - 1], of the tokens but the first.
        top_ids, top: [P - 1, N], the most likely tokens at each of these places.
    """

    token_ids: tuple[int, ...]
    logprobs: Float[np.ndarray, "T"]
    ranks: Int[np.ndarray, "T"]
    top_ids: Int[np.ndarray, "T N"]
    top: Float[np.ndarray, "T N"]

    @classmethod
    def empty(cls, token_ids: tuple[int, ...], num_top: int) -> "PromptLogprobs":
        """For `fill` to fill."""
        count = len(token_ids) - 1
        real, whole = np.zeros((count, num_top), np.float32), np.zeros((count, num_top), np.int32)
        return cls(token_ids, np.zeros(count, np.float32), np.zeros(count, np.int32), whole, real)

    def fill(
        self,
        start: int,
        logprobs: Float[np.ndarray, "T"],
        ranks: Int[np.ndarray, "T"],
        top_ids: Int[np.ndarray, "T M"],
        top: Float[np.ndarray, "T M"],
    ) -> None:
        """Enter what belongs to the tokens from position `start` (at least 1) on; the device ranks M >= N tokens."""
        rows, num_top = slice(start - 1, start - 1 + len(logprobs)), self.top.shape[1]
        self.logprobs[rows], self.ranks[rows] = logprobs, ranks
        self.top_ids[rows], self.top[rows] = top_ids[:, :num_top], top[:, :num_top]

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> TokenLogprob | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprob | None]: ...

    def __getitem__(self, index: int | slice) -> TokenLogprob | list[TokenLogprob | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        token, at = self.token_ids[index], range(len(self))[index] - 1
        if at < 0:
            return None
        logprob, rank, num_top = self.logprobs[at].item(), self.ranks[at].item(), self.top.shape[1]
        return TokenLogprob.of(token, logprob, rank, self.top_ids[at], self.top[at], num_top)

    def to_json(self) -> list[dict[str, Any] | None]:
        return [None if entry is None else entry.to_dict() for entry in self]


def finite(logprob: float) -> float:
    """JSON has no infinity: what cannot come up has -9999.0, as at OpenAI."""
    return logprob if math.isfinite(logprob) else _LOWEST


def _json(value: float) -> float:
    return round(finite(value), 6)
