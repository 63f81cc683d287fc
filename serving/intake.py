"""The way into an engine: a request that can run becomes a live one, and another is refused with its numbers."""

import secrets
import time
from collections.abc import Callable
from itertools import count

from ..models.tokenizer import Tokenizer
from .errors import CacheTooSmallError, ContextLengthError
from .generation import Outlet
from .live_request import LiveRequest, with_seed
from .metrics import Metrics
from .output import Hidden, Output
from .results import Timings
from .rows import Row, check_row, sampling_row
from .runner import Device
from .scheduler import Scheduler
from .sequence import Sequence
from .types import Kind, Request


class Intake:
    """
    Args:
        device: what will compute.
        scheduler: knows how many pages there are.
        metrics: where live requests count.
        vocab_size: tokens that requests may name.
        eos_ids: the model's end tokens.
        tokenizer: None for token ids alone.
        hidden: what hidden states behind the last norm become before they are told.
        clock: seconds.

    Attributes:
        load_seconds: that loading the model took, which the first request is told.
    """

    def __init__(
        self,
        device: Device,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        vocab_size: int,
        eos_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        hidden: Hidden | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.load_seconds = 0.0
        self._device = device
        self._scheduler = scheduler
        self._metrics = metrics
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._tokenizer, self._hidden = tokenizer, hidden
        self._clock = clock
        self._order = count(1)  # any thread may take the next

    def take(self, request: Request, outbox: Outlet) -> LiveRequest:
        """The request with a seed and its sequences, which no scheduler has yet.

        Raises:
            ContextLengthError, CacheTooSmallError: it can never fit.
            InvalidParameterError: a parameter that this model or its vocabulary cannot honour.
        """
        request = with_seed(request, secrets.randbits(64))
        check_row(request, vocab_size=self._vocab_size, eos_ids=self._eos_ids)
        prompt_len, context = len(request.prompt), self._device.max_len
        generates = request.kind is Kind.GENERATE
        if prompt_len + generates > context:
            raise ContextLengthError(
                f"the prompt has {prompt_len} tokens, the context holds {context} with the answer; "
                f"shorten the prompt to at most {context - generates} tokens"
            )
        max_tokens = request.params.num_tokens(context - prompt_len) if generates else 0
        max_len = prompt_len + max_tokens
        if not self._scheduler.fits(prompt_len, max_len):
            raise CacheTooSmallError(
                f"prompt and answer take {max_len} tokens, that is {self._scheduler.pages_needed(max_len)} pages of "
                f"the KV cache, which has {self._device.num_pages}; ask for fewer tokens or raise kv_memory"
            )
        arrival = self._clock()
        sequences = tuple(
            Sequence.of(request, choice, max_len=max_len, order=next(self._order), arrival=arrival)
            for choice in range(request.params.n if generates else 1)
        )
        output = Output(
            request, max_tokens=max_tokens, eos_ids=self._eos_ids, tokenizer=self._tokenizer, hidden=self._hidden
        )
        timings, self.load_seconds = Timings(load=self.load_seconds), 0.0
        return LiveRequest(
            request,
            output,
            sequences,
            self._metrics,
            timings,
            lambda: self._device.compile_seconds,
            outbox,
            self._clock,
        )

    def row(self, sequence: Sequence) -> Row:
        """How the device draws a sequence's tokens."""
        request = sequence.request
        return sampling_row(
            request.params,
            request=request,
            choice=sequence.choice,
            prompt_len=sequence.prompt_len,
            vocab_size=self._vocab_size,
            eos_ids=self._eos_ids,
            max_len=self._device.max_len,
        )
