"""The events of a Stream as messages of the KServe protocol."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..front import Admitted, Delta, Event, Finished
from ..logprobs import TokenLogprob
from .kserve_request import VERSION, Asked
from .kserve_tensors import OUTPUTS, write_tensor
from .protos.kserve import inference_pb2 as pb

UNFINISHED = "None"
"""The finish reason of an answer under way, as vLLM's backend has it."""


@dataclass
class Part:
    """What a choice has to tell in the next message.

    Attributes:
        total: of the log-probabilities of its answer up to now.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    total: float = 0.0
    finish_reason: str = UNFINISHED


class Answer:
    """Collects one request's events into messages: one for those that come together, or one in all.

    Args:
        asked: the request.
        spell: the text of a token, for the output `logprobs`.
    """

    def __init__(self, asked: Asked, spell: Callable[[int], str]) -> None:
        self._asked = asked
        self._spell = spell
        self._parts = [Part() for _ in range(asked.num_choices)]
        self._num_prompt_tokens = 0

    def add(self, events: Sequence[Event]) -> pb.ModelInferResponse | None:
        """What to send now, if the answer is streamed."""
        message = None
        for event in events:
            if isinstance(event, Admitted):
                self._num_prompt_tokens = event.prompt_tokens
            elif isinstance(event, Delta):
                self._take(self._parts[event.index], event)
        if self._asked.stream and any(isinstance(event, Delta) for event in events):
            message = self._flush(final=False)
        for event in events:  # ends are told by the message behind
            if isinstance(event, Finished) and event.reason.is_complete:  # others are errors in this protocol
                self._parts[event.index].finish_reason = event.reason.finish.value
        return message

    def last(self, prompt_ids: Sequence[int]) -> pb.ModelInferResponse:
        """The last message: what was not sent yet, and that nothing follows.

        Args:
            prompt_ids: the prompt's tokens.
        """
        asked = self._asked
        if asked.with_prompt:
            for part in self._parts:
                part.token_ids[:0] = prompt_ids
                if isinstance(asked.call.prompt, str):
                    part.text = asked.call.prompt + part.text
        tells_nothing = asked.stream and asked.empty_final and "finish_reason" not in asked.outputs
        return self._response(final=True) if tells_nothing else self._flush(final=True)

    def _take(self, part: Part, delta: Delta) -> None:
        part.text += delta.text
        part.token_ids += delta.token_ids
        part.logprobs += delta.logprobs
        part.total += sum(entry.logprob for entry in delta.logprobs)

    def _flush(self, *, final: bool) -> pb.ModelInferResponse:
        response = self._response(final=final)
        for name in self._asked.outputs:
            values, shape = self._values(name)
            write_tensor(response, OUTPUTS[name], values, shape, raw=self._asked.raw)
        for part in self._parts:
            part.text, part.token_ids, part.logprobs = "", [], []
        return response

    def _response(self, *, final: bool) -> pb.ModelInferResponse:
        asked = self._asked
        response = pb.ModelInferResponse(model_name=asked.model_name, model_version=VERSION, id=asked.id)
        response.parameters["triton_final_response"].bool_param = final
        return response

    def _values(self, output: str) -> tuple[list[Any], tuple[int, ...]]:
        """The flat values of an output and its shape; choices come first."""
        parts = self._parts
        if output == "output_ids":
            return self._padded([part.token_ids for part in parts], self._asked.pad_id)
        if output == "output_log_probs":
            return self._padded([[entry.logprob for entry in part.logprobs] for part in parts], 0.0)
        if output == "num_input_tokens":
            return [self._num_prompt_tokens], (1,)
        values = [self._value(output, part) for part in parts]
        return values, (len(values),)

    def _value(self, output: str, part: Part) -> Any:
        match output:
            case "text_output":
                return part.text
            case "finish_reason":
                return part.finish_reason
            case "cumulative_logprob" | "cum_log_probs":
                return part.total
            case "logprobs":
                return json.dumps([entry.by_id(self._spell) for entry in part.logprobs])
            case "num_output_tokens":
                return self._num_drawn(part)
            case _:
                assert output == "sequence_length"
                return len(part.token_ids)

    def _num_drawn(self, part: Part) -> int:
        """Tokens in this message, without the prompt's."""
        return len(part.token_ids) - (self._num_prompt_tokens if self._asked.with_prompt else 0)

    def _padded(self, rows: list[list[Any]], padding: Any) -> tuple[list[Any], tuple[int, ...]]:
        longest = max(map(len, rows))
        return [value for row in rows for value in row + [padding] * (longest - len(row))], (len(rows), longest)
