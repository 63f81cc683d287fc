"""The events of a Stream as messages of the vllm.grpc.engine protocol."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from ..front import Admitted, Delta, Event, Finished, Reason
from ..logprobs import TokenLogprob


@dataclass
class _Choice:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None


class Answer:
    """Collects one request's events.

    Args:
        stream: whether tokens are sent as they come. If not, each choice is one message at the end.
        num_top: how many of the most likely tokens come with each token, None for no log-probabilities.

    Attributes:
        of_prompt: log-probabilities of the prompt, once they are there; the next chunk and each last message have them.
    """

    def __init__(self, *, stream: bool, num_top: int | None) -> None:
        self.of_prompt: pb.InputLogProbs | None = None
        self._told_prompt = False
        self._stream = stream
        self._num_top = num_top
        self._choices: dict[int, _Choice] = {}
        self._prompt_tokens = 0
        self._cached_tokens = 0

    def add(self, event: Event) -> pb.GenerateResponse | None:
        """What to send now."""
        if isinstance(event, Admitted):
            self._prompt_tokens, self._cached_tokens = event.prompt_tokens, event.cached_tokens
            return None
        choice = self._choices.setdefault(event.index, _Choice())
        if isinstance(event, Finished):
            choice.finished = event
            return None
        choice.token_ids += event.token_ids
        choice.logprobs += event.logprobs
        return self._chunk(event) if self._stream and event.token_ids else None

    def completes(self) -> Iterator[pb.GenerateResponse]:
        """The last message of each choice that has ended since."""
        for index, choice in sorted(self._choices.items()):
            if choice.finished is not None:
                yield self._complete(index, choice, choice.finished)
                del self._choices[index]

    def _chunk(self, delta: Delta) -> pb.GenerateResponse:
        """`completion_tokens` counts this chunk's alone: readers add them up."""
        of_prompt = None if self._told_prompt else self.of_prompt
        self._told_prompt = self.of_prompt is not None
        return pb.GenerateResponse(
            chunk=pb.GenerateStreamChunk(
                token_ids=delta.token_ids,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=len(delta.token_ids),
                cached_tokens=self._cached_tokens,
                output_logprobs=self._output_logprobs(delta.logprobs),
                input_logprobs=of_prompt,
                index=delta.index,
            )
        )

    def _complete(self, index: int, choice: _Choice, finished: Finished) -> pb.GenerateResponse:
        complete = pb.GenerateComplete(
            output_ids=choice.token_ids,
            finish_reason=finished.reason.finish.value,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=finished.completion_tokens,
            cached_tokens=self._cached_tokens,
            output_logprobs=self._output_logprobs(choice.logprobs),
            input_logprobs=self.of_prompt,
            index=index,
        )
        if finished.reason is Reason.STOP_STRING:
            complete.matched_stop_str = str(finished.stopped_by)
        elif finished.reason is Reason.STOP_TOKEN and isinstance(finished.stopped_by, int):
            complete.matched_token_id = finished.stopped_by
        return pb.GenerateResponse(complete=complete)

    def _output_logprobs(self, logprobs: Sequence[TokenLogprob]) -> pb.OutputLogProbs | None:
        if self._num_top is None or not logprobs:
            return None
        return pb.OutputLogProbs(
            token_logprobs=[entry.logprob for entry in logprobs],
            token_ids=[entry.token_id for entry in logprobs],
            top_logprobs=[_top(entry) for entry in logprobs] if self._num_top else (),
        )


def input_logprobs(logprobs: Sequence[TokenLogprob | None], token_ids: Sequence[int], num_top: int) -> pb.InputLogProbs:
    """Of a prompt; nothing is known of its first token."""
    values = [pb.InputTokenLogProb(value=None if entry is None else entry.logprob) for entry in logprobs]
    return pb.InputLogProbs(
        token_logprobs=values,
        token_ids=token_ids,
        top_logprobs=[_top(entry) for entry in logprobs] if num_top else (),
    )


def _top(entry: TokenLogprob | None) -> pb.TopLogProbs:
    top = () if entry is None else entry.top
    return pb.TopLogProbs(values=[value for _, value in top], token_ids=[token for token, _ in top])
