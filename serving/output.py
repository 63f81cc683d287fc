"""Drawn tokens to answers: text, and the moment an answer ends. Knows neither devices nor scheduling."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from ..models.detokenizer import Detokenizer
from ..models.tokenizer import Tokenizer
from .logprobs import PromptLogprobs, TokenLogprob
from .results import Choice, Completion, Embedding, FinishReason, Score, Timings, TokenEvent, Usage
from .rows import stop_ids
from .stop_text import StopText
from .types import Kind, Request

type Hidden = Callable[[Float[np.ndarray, "D"]], Float[np.ndarray, "D"]]
"""Takes hidden states behind the last norm to those that a client is told."""


class ChoiceOutput:
    """One answer as its tokens come back.

    Attributes:
        num_generated: tokens drawn, one that ended the text included.
        finish_reason: None while it goes on.
        stopped_by: the stop text or token behind FinishReason.STOP.

    Args:
        request: what was asked.
        index: which of its answers this is.
        max_tokens: most tokens of the answer, the context considered.
        stops: tokens that end it.
        detokenizer: a fresh one, or None for token ids alone.
    """

    def __init__(
        self, request: Request, index: int, *, max_tokens: int, stops: frozenset[int], detokenizer: Detokenizer | None
    ) -> None:
        self.num_generated = 0
        self.finish_reason: FinishReason | None = None
        self.stopped_by: str | int | None = None
        self._index = index
        self._prompt = request.prompt if request.params.echo else ()
        self._min_tokens = request.params.min_tokens
        self._max_tokens = max_tokens
        self._stops = stops
        self._detokenizer = detokenizer
        self._stop_text = StopText(request.params.stop)
        self._token_ids = list(self._prompt)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] | None = None if request.params.logprobs is None else []

    def echo(self) -> TokenEvent | None:
        """The prompt, before any token of the answer; None where it is not echoed."""
        if not self._prompt:
            return None
        # The answer goes through the same detokenizer, so that the space between the two comes out.
        text = "" if self._detokenizer is None else "".join(map(self._detokenizer.add, self._prompt))
        return self._event(None, text)

    def add(self, token_id: int, logprob: TokenLogprob | None = None) -> TokenEvent:
        """Takes the next token. Nothing may be added once there is a `finish_reason`."""
        assert self.finish_reason is None, "tokens behind the end of an answer"
        self.num_generated += 1
        self._token_ids.append(token_id)
        if self._logprobs is not None:
            assert logprob is not None
            self._logprobs.append(logprob)
        counts = self.num_generated > self._min_tokens
        ended = counts and token_id in self._stops
        text, reason, stopped_by = "", None, None
        if self._detokenizer is not None and not ended:
            text = self._stop_text.add(self._detokenizer.add(token_id), counts=counts)
        if self._stop_text.found is not None:
            reason, stopped_by = FinishReason.STOP, self._stop_text.found
        elif ended:
            text += self._rest()
            reason, stopped_by = FinishReason.STOP, token_id
        elif self.num_generated >= self._max_tokens:
            text += self._rest()
            reason = FinishReason.LENGTH
        self.finish_reason, self.stopped_by = reason, stopped_by
        return self._event(token_id, text, logprob)

    def end(self, reason: FinishReason) -> TokenEvent:
        """Ends the answer from outside (ABORT, ERROR): the text that was held back, without a token."""
        assert self.finish_reason is None
        # After an error the detokenizer may be what failed.
        text = self._stop_text.finish() if reason is FinishReason.ERROR else self._rest()
        self.finish_reason = reason
        return self._event(None, text)

    def choice(self) -> Choice:
        """The answer, once it has ended."""
        assert self.finish_reason is not None
        return Choice(
            index=self._index,
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason=self.finish_reason,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            stopped_by=self.stopped_by,
        )

    def _rest(self) -> str:
        """What the end of the text makes certain: broken code points, and the beginnings of stop texts."""
        if self._detokenizer is None:
            return ""
        return self._stop_text.add(self._detokenizer.finish(), counts=False) + self._stop_text.finish()

    def _event(self, token_id: int | None, text: str, logprob: TokenLogprob | None = None) -> TokenEvent:
        if text:
            self._text.append(text)
        return TokenEvent(token_id, text, self.finish_reason, self._index, logprob, self.stopped_by)


class Output:
    """Everything that comes out of one request.

    Attributes:
        choices: the answers under way; none for a request that draws nothing.
        max_tokens: most tokens of an answer, the context considered.
        prompt_logprobs: where asked for; whole once the first answer has a token.

    Args:
        request: with the seed filled in.
        eos_ids: the model's end tokens.
        tokenizer: None for token ids alone.
        hidden: what hidden states behind the last norm become before they are told.
    """

    def __init__(
        self,
        request: Request,
        *,
        max_tokens: int,
        eos_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        hidden: Hidden | None = None,
    ) -> None:
        self._hidden = hidden
        self.request = request
        self.max_tokens = max_tokens
        stops = stop_ids(request.params, eos_ids)
        self.choices = tuple(
            ChoiceOutput(
                request,
                index,
                max_tokens=max_tokens,
                stops=stops,
                detokenizer=None if tokenizer is None else tokenizer.detokenizer(),
            )
            for index in range(request.params.n if request.kind is Kind.GENERATE else 0)
        )
        num_top = request.params.prompt_logprobs
        self.prompt_logprobs: PromptLogprobs | None = None
        if num_top is not None or request.kind is Kind.SCORE:
            self.prompt_logprobs = PromptLogprobs.empty(request.prompt, num_top or 0)

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def add_prompt(
        self,
        start: int,
        chosen: Float[np.ndarray, "T"],
        ranks: Int[np.ndarray, "T"],
        top_ids: Int[np.ndarray, "T N"],
        top: Float[np.ndarray, "T N"],
    ) -> None:
        """Log-probabilities of the prompt's tokens from position `start` (at least 1) on. A part may come twice."""
        assert self.prompt_logprobs is not None
        self.prompt_logprobs.fill(start, chosen, ranks, top_ids, top)

    def completion(self, timings: Timings, *, cached_tokens: int = 0) -> Completion:
        """The answers, once all have ended."""
        assert self.request.params.seed is not None
        return Completion(
            choices=tuple(choice.choice() for choice in self.choices),
            prompt_token_ids=self.request.prompt,
            usage=self.usage(cached_tokens),
            timings=timings,
            seed=self.request.params.seed,
            prompt_logprobs=self.prompt_logprobs,
        )

    def score(self, timings: Timings) -> Score:
        """The log-probabilities of the prompt, once all of it was added."""
        assert self.prompt_logprobs is not None
        return Score(self.prompt_logprobs, self.usage(), timings)

    def embedding(self, vector: Float[np.ndarray, "D"], timings: Timings) -> Embedding:
        """The prompt as a vector."""
        told = vector if self._hidden is None else self._hidden(vector)
        return Embedding(told, self.request.prompt, self.usage(), timings)

    def usage(self, cached_tokens: int = 0) -> Usage:
        """Tokens so far, those of every answer."""
        generated = sum(choice.num_generated for choice in self.choices)
        return Usage(len(self.request.prompt), generated, cached_tokens)
