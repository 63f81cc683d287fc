"""Every sampling parameter, once: validation, the table in docs/sampling.md and the tests all read `PARAMETERS`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from ..models.logprobs import MAX_LOGPROBS
from ..models.row_state import MAX_BAD_WORD_LEN, MAX_BAD_WORDS, MAX_BIAS, MAX_STOP_IDS
from .domains import MAX_TOKEN_ID, Biases, Domain, Flag, Real, Texts, TokenIds, Whole


class Where(StrEnum):
    """Where a parameter takes effect."""

    DEVICE = "device"
    """Inside the compiled step."""
    HOST = "host"
    """As tokens come back from the device."""
    SUBMIT = "submit"
    """When the request is taken in."""


@dataclass(frozen=True)
class Parameter:
    """One sampling parameter.

    Attributes:
        name: the field of SamplingParams.
        default: what leaves it out.
        domain: which values are accepted.
        where: what part of the program honours it.
        doc: what it does, as it stands in the documentation.
        example: a value that changes what comes out.
        refused: values outside the domain.
    """

    name: str
    default: Any
    domain: Domain
    where: Where
    doc: str
    example: Any
    refused: tuple[Any, ...]


_WHOLE = (-1, 1.5, True, "1", 2**64)
_REAL = (float("nan"), float("inf"), True, "1", None)
_FLAG = (1, None, "yes")
_TEXTS = (("",), ("a", ""), (1,), 1, None)
_IDS = (5, "5", (-1,), (1.0,), (True,), (MAX_TOKEN_ID + 1,), {1: 2})

MAX_STOP_TEXTS = 64
MAX_STOP_TEXT_LEN = 1024
"""Each text is looked for at every token, by the thread that serves everybody."""

PARAMETERS = (
    Parameter(
        "max_tokens",
        128,
        Whole(1, 2**31 - 1, none="to the end of the context"),
        Where.HOST,
        "Most tokens to generate; the context may end the text sooner.",
        3,
        (0, *_WHOLE),
    ),
    Parameter(
        "min_tokens",
        0,
        Whole(0, 2**31 - 1),
        Where.DEVICE,
        "Fewest tokens before the text may end: until then end and stop tokens cannot be drawn, and stop texts that "
        "are complete by then do not count.",
        8,
        _WHOLE,
    ),
    Parameter(
        "temperature",
        1.0,
        Real(1e-4, 100, zero="greedy"),
        Where.DEVICE,
        "Divides the logits; higher is more varied, 0 takes the most likely token each time.",
        0.0,
        (-0.1, 1e-30, 101.0, *_REAL),
    ),
    Parameter(
        "top_k",
        0,
        Whole(0, 2**31 - 1),
        Where.DEVICE,
        "Draw from this many of the most likely tokens, 0 for all.",
        1,
        _WHOLE,
    ),
    Parameter(
        "top_p",
        1.0,
        Real(0, 1, open=True),
        Where.DEVICE,
        "Draw from the fewest tokens whose probabilities reach this sum, 1 for all.",
        1e-6,
        (0, 1.1, *_REAL),
    ),
    Parameter(
        "min_p",
        0.0,
        Real(0, 1),
        Where.DEVICE,
        "Draw from tokens at least this share as likely as the most likely one, 0 for all.",
        1.0,
        (-0.1, 1.5, *_REAL),
    ),
    Parameter(
        "typical_p",
        1.0,
        Real(0, 1, open=True),
        Where.DEVICE,
        "Draw from the tokens whose surprise is closest to the expected one, as many as reach this sum of "
        "probabilities; 1 for all.",
        0.05,
        (0, 1.1, *_REAL),
    ),
    Parameter(
        "repetition_penalty",
        1.0,
        Real(0.01, 100),
        Where.DEVICE,
        "Divides the positive logits, and multiplies the negative ones, of tokens that stand in the prompt or the "
        "answer: above 1 discourages repetition, 1 is off.",
        2.0,
        (0, -1, 101, *_REAL),
    ),
    Parameter(
        "presence_penalty",
        0.0,
        Real(-2, 2),
        Where.DEVICE,
        "Taken off the logits of tokens that the answer holds, 0 is off.",
        2.0,
        (-2.1, 2.1, *_REAL),
    ),
    Parameter(
        "frequency_penalty",
        0.0,
        Real(-2, 2),
        Where.DEVICE,
        "Taken off the logit of a token once for each time that the answer holds it, 0 is off.",
        2.0,
        (-2.1, 2.1, *_REAL),
    ),
    Parameter(
        "logit_bias",
        None,
        Biases(MAX_BIAS, -100, 100),
        Where.DEVICE,
        "Added to the logits of the given token ids.",
        {7: 100.0},
        (5, (1, 2), {-1: 1.0}, {"1": 1.0}, {1: 101.0}, {1: float("nan")}, {1: None}),
    ),
    Parameter(
        "bad_words",
        (),
        Texts(MAX_BAD_WORDS),
        Where.DEVICE,
        "Texts that do not come up, neither at the start of the text nor behind a space: the last token of each cannot "
        f"be drawn behind the ones before it. Each may take {MAX_BAD_WORD_LEN} tokens, and all of them, spelled with "
        f"and without a space before them, {MAX_BAD_WORDS} spellings.",
        ("a",),
        _TEXTS,
    ),
    Parameter(
        "allowed_token_ids",
        None,
        TokenIds(none="all"),
        Where.DEVICE,
        "Only these token ids are drawn. End tokens are not exempt: without one among them, only `max_tokens` or "
        "`stop` ends the text.",
        (1, 2, 3),
        ((), *_IDS),
    ),
    Parameter(
        "stop",
        (),
        Texts(MAX_STOP_TEXTS, MAX_STOP_TEXT_LEN),
        Where.HOST,
        "Texts that end the answer when they come up; they are left out of it.",
        ("a",),
        _TEXTS,
    ),
    Parameter(
        "stop_token_ids",
        (),
        TokenIds(MAX_STOP_IDS),
        Where.HOST,
        "Token ids that end the answer besides the model's own end tokens; what they spell is left out of the text.",
        (1, 2, 3),
        _IDS,
    ),
    Parameter(
        "ignore_eos",
        False,
        Flag(),
        Where.HOST,
        "Generate past the model's end tokens.",
        True,
        _FLAG,
    ),
    Parameter(
        "n",
        1,
        Whole(1, 1024),
        Where.SUBMIT,
        "How many answers to give, each drawn on its own; the prompt is computed once.",
        2,
        (0, 1025, *_WHOLE),
    ),
    Parameter(
        "seed",
        None,
        Whole(0, 2**64 - 1, none="one is drawn"),
        Where.DEVICE,
        "64 bits that make the draws repeatable; the answer names the seed that was used.",
        1,
        (-1, 2**64, 1.5, True, "1"),
    ),
    Parameter(
        "logprobs",
        None,
        Whole(0, MAX_LOGPROBS, none="none"),
        Where.DEVICE,
        "Log-probabilities of each generated token and of this many of the most likely ones at its place, of the "
        "model's own logits: before any parameter of this table changes them.",
        2,
        (MAX_LOGPROBS + 1, *_WHOLE),
    ),
    Parameter(
        "prompt_logprobs",
        None,
        Whole(0, MAX_LOGPROBS, none="none"),
        Where.DEVICE,
        "The same for each token of the prompt but the first. The whole prompt is computed for it: no prefix is taken "
        "from the cache.",
        2,
        (MAX_LOGPROBS + 1, *_WHOLE),
    ),
    Parameter(
        "echo",
        False,
        Flag(),
        Where.HOST,
        "The prompt comes first in the answer's text and tokens.",
        True,
        _FLAG,
    ),
)

BY_NAME: Mapping[str, Parameter] = MappingProxyType({parameter.name: parameter for parameter in PARAMETERS})
