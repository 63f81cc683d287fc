"""One text as it is generated: an iterator of token events."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..models.detokenizer import Detokenizer
from .programs import Programs, Shape
from .stop_text import StopText
from .types import Completion, FinishReason, SamplingParams, Timings, TokenEvent, Usage


class Generation(Iterator[TokenEvent]):
    """Generates while it is iterated; `completion()` sums up once it has ended.

    Args:
        programs: the compiled model.
        prompt: token ids, at least one, fewer than the context holds.
        params: with the seed filled in.
        prefill: shape of the steps that read the prompt, a chunk at a time.
        context: longest text in tokens, prompt included.
        eos_ids: tokens that end the text.
        load_seconds: what loading the model took, to be reported.
    """

    def __init__(
        self,
        programs: Programs,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        prefill: Shape,
        context: int,
        eos_ids: frozenset[int],
        detokenizer: Detokenizer | None,
        load_seconds: float = 0.0,
    ) -> None:
        self.prompt = tuple(prompt)
        self.params = params
        self.timings = Timings(load=load_seconds)
        self._token_ids: list[int] = []
        self._text: list[str] = []
        self._finish_reason: FinishReason | None = None
        self._max_tokens = min(params.max_tokens, context - len(prompt))
        self._eos_ids = eos_ids
        self._detokenizer = detokenizer
        self._stop = StopText(params.stop)
        self._tokens = self._run(programs, prefill)

    def __next__(self) -> TokenEvent:
        if self._finish_reason is not None:
            raise StopIteration
        return self._event(next(self._tokens))

    def completion(self) -> Completion:
        """The whole answer; generates what is left of it first."""
        for _ in self:
            pass
        assert self._finish_reason is not None and self.params.seed is not None
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self.prompt,
            finish_reason=self._finish_reason,
            usage=Usage(len(self.prompt), len(self._token_ids)),
            timings=self.timings,
            seed=self.params.seed,
        )

    def _event(self, token: int) -> TokenEvent:
        self._token_ids.append(token)
        ended = token in self._eos_ids
        text = ""
        if self._detokenizer is not None:
            text = self._stop.add("" if ended else self._detokenizer.add(token))
            if ended or len(self._token_ids) == self._max_tokens:
                text += self._stop.add(self._detokenizer.finish()) + self._stop.finish()
        if ended or self._stop.found:
            self._finish_reason = FinishReason.STOP
        elif len(self._token_ids) == self._max_tokens:
            self._finish_reason = FinishReason.LENGTH
        self._text.append(text)
        return TokenEvent(token, text, self._finish_reason)

    def _run(self, programs: Programs, prefill: Shape) -> Iterator[int]:
        decode = replace(prefill, num_tokens=1)
        before = programs.compile_seconds
        programs.prepare(prefill)
        programs.prepare(decode)
        self.timings.compile = programs.compile_seconds - before

        start = time.perf_counter()
        cache = programs.new_cache(prefill.num_pages)
        token = 0
        for first in range(0, len(self.prompt), prefill.num_tokens):
            chunk = self.prompt[first : first + prefill.num_tokens]
            token, cache = programs.run(prefill, cache, chunk, first, self.params)
        self.timings.prefill = time.perf_counter() - start
        yield token

        for position in range(len(self.prompt), len(self.prompt) + self._max_tokens - 1):
            start = time.perf_counter()
            token, cache = programs.run(decode, cache, [token], position, self.params)
            self.timings.decode += time.perf_counter() - start
            self.timings.decoded_tokens += 1
            yield token
