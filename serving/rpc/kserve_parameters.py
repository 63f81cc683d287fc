"""Sampling parameters as the KServe protocol's clients write them: JSON, request parameters, or tensors."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ...backends.errors import InvalidParameterError
from ..capabilities import BY_NAME
from ..domains import Texts
from ..sampling_params import SamplingParams, biases_by_id, unsigned_seed
from .compatible import RefusedFieldError, listed

_NO_CONSTRAINT = "structured output is not supported"
_NO_ADAPTER = "there are no adapters"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "lora_name": _NO_ADAPTER,
        "lora_task_id": _NO_ADAPTER,
        "lora_weights": _NO_ADAPTER,
        "lora_config": _NO_ADAPTER,
        "guided_decoding": _NO_CONSTRAINT,
        "guided_decoding_guide": _NO_CONSTRAINT,
        "guided_decoding_guide_type": _NO_CONSTRAINT,
        "structured_outputs": _NO_CONSTRAINT,
        "image": "the model takes text alone",
        "embedding_request": "embeddings are asked for in another protocol (VllmEngine.Embed, distaff.v1)",
        "sequence_id": "requests are independent of each other",
        "sequence_start": "requests are independent of each other",
        "sequence_end": "requests are independent of each other",
        "bad_words_list": "bad words are given as texts, in bad_words",
        "stop_words_list": "stop texts are given as texts, in stop_words",
        "embedding_bias": "logits are biased by token id, with logit_bias in sampling_parameters",
        "embedding_bias_words": "logits are biased by token id, with logit_bias in sampling_parameters",
        "embedding_bias_weights": "logits are biased by token id, with logit_bias in sampling_parameters",
        "prompt_embedding_table": "prompts are texts or token ids",
        "prompt_vocab_size": "prompts are texts or token ids",
        "length_penalty": "there are no beams",
        "early_stopping": "there are no beams",
        "top_p_min": "top_p stays as it is",
        "top_p_decay": "top_p stays as it is",
        "top_p_reset_ids": "top_p stays as it is",
        "echo": "the prompt comes with the answer unless exclude_input_in_output says otherwise",
        "prompt_logprobs": "no output of this protocol holds them",
    }
)
"""Inputs and parameters that clients are known to send."""

_ONLY: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "include_stop_str_in_output": (False,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True, False),  # there are none in the text
        "detokenize": (True,),
    }
)
"""Parameters of vLLM's for which this much is what happens anyway."""


def read_sampling(given: Mapping[str, Any]) -> SamplingParams:
    """
    Args:
        given: as vLLM names them; values may be spelled as texts, as some clients do.

    Raises:
        DistaffError: it names the parameter that cannot be honoured.
    """
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in REFUSED:
            raise RefusedFieldError(name, REFUSED[name])
        if name == "best_of":
            if value is not None and _plain(value) != _plain(given.get("n", 1)):
                raise InvalidParameterError(name, value, "the value of n: every answer is given")
        elif name in _ONLY:
            if _plain(value) not in _ONLY[name]:
                raise InvalidParameterError(name, value, " or ".join(map(str, _ONLY[name])))
        elif name not in BY_NAME:
            raise InvalidParameterError("sampling_parameters", name, f"parameters among {listed(BY_NAME)}")
        else:
            textual = isinstance(BY_NAME[name].domain, Texts)
            value = value if textual else _plain(value)
            if value is not None or name == "max_tokens":  # null leaves the others out
                fields[name] = _READ.get(name, _same)(value)
    return SamplingParams(**fields)


def read_json(text: str) -> dict[str, Any]:
    """The tensor `sampling_parameters`.

    Raises:
        InvalidParameterError: it is not one JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidParameterError("sampling_parameters", text[:40], "a JSON object")
    return value


def _plain(value: Any) -> Any:
    """A number, a flag or a list that is spelled as a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.lower() if value in ("True", "False", "None") else value)
    except (ValueError, RecursionError):
        return value


def _same(value: Any) -> Any:
    return value


def _top_k(value: Any) -> Any:
    return 0 if value == -1 else value


def _seed(value: Any) -> Any:
    return unsigned_seed(value) if isinstance(value, int) else value


def _biases(value: Any) -> Any:
    return biases_by_id(value) if isinstance(value, Mapping) else value


_READ: Mapping[str, Callable[[Any], Any]] = MappingProxyType({"top_k": _top_k, "seed": _seed, "logit_bias": _biases})
