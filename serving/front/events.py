"""What the reader of a Stream sees."""

from dataclasses import dataclass
from enum import StrEnum

from ..logprobs import TokenLogprob
from ..results import FinishReason
from ..sampling_params import SamplingParams


class Reason(StrEnum):
    """Why an answer ended."""

    EOS = "eos"
    """The model ended it."""
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    """It has max_tokens tokens."""
    CONTEXT_LIMIT = "context_limit"
    """The model's context is full."""
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    SLOW_READER = "slow_reader"
    """Nobody read what there was."""
    DRAINED = "drained"
    """The server went down before it was complete."""
    ERROR = "error"

    @property
    def finish(self) -> FinishReason:
        """The engine's word for it, which is OpenAI's and vLLM's too."""
        return _FINISHES.get(self, FinishReason.ABORT)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is as the model gives it, and not cut from outside."""
        return self.finish in (FinishReason.STOP, FinishReason.LENGTH)


_FINISHES = {
    Reason.EOS: FinishReason.STOP,
    Reason.STOP_STRING: FinishReason.STOP,
    Reason.STOP_TOKEN: FinishReason.STOP,
    Reason.LENGTH: FinishReason.LENGTH,
    Reason.CONTEXT_LIMIT: FinishReason.LENGTH,
    Reason.ERROR: FinishReason.ERROR,
}


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first event: the request has a slot.

    Attributes:
        cached_tokens: of the prompt, found computed.
        params: as they take effect: with the seed drawn and max_tokens cut to the context.
    """

    id: str
    queue_seconds: float
    prompt_tokens: int
    cached_tokens: int
    params: SamplingParams


@dataclass(slots=True)  # one for every token: a frozen one would take thrice as long to make
class Delta:
    """What came for one choice: a token, or several where the reader was slow.

    Attributes:
        text: what became certain with it, perhaps nothing yet.
        token_ids: none where text was held back until the end; those of the prompt where it is echoed.
        logprobs: one for each token drawn, where asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a choice.

    Attributes:
        stopped_by: the stop text, or the end or stop token.
        completion_tokens: drawn for this choice, one that ended it included.
    """

    index: int
    reason: Reason
    stopped_by: str | int | None
    completion_tokens: int


type Event = Admitted | Delta | Finished


def reason_of(
    finish: FinishReason, stopped_by: str | int | None, num_tokens: int, params: SamplingParams, cause: Reason | None
) -> Reason:
    """The engine's reason in full.

    Args:
        num_tokens: drawn for the choice.
        params: what the caller asked for (not what takes effect).
        cause: why the front ended the request, if it did.
    """
    if finish is FinishReason.STOP:
        if isinstance(stopped_by, str):
            return Reason.STOP_STRING
        return Reason.STOP_TOKEN if stopped_by in params.stop_token_ids else Reason.EOS
    if finish is FinishReason.LENGTH:
        return Reason.LENGTH if params.max_tokens == num_tokens else Reason.CONTEXT_LIMIT
    if finish is FinishReason.ERROR:
        return Reason.ERROR
    return cause or Reason.CANCELLED
