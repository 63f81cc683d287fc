"""Options of how tokens are chosen and when a text ends: one for each field of SamplingParams."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..backends.errors import InvalidParameterError

END = "When it ends"
DRAW = "Which tokens are drawn"
PENALTY = "What is made more or less likely"
OUTPUT = "What comes out"


def _option(
    name: str, what: str, *, default: str = "", metavar: str | None = None, panel: str, many: bool = False
) -> Any:
    what += "; may be given several times." if many else "."
    return typer.Option(
        name, help=what + (f" [default: {default}]" if default else ""), metavar=metavar, rich_help_panel=panel
    )


MaxTokens = Annotated[
    str | None,
    _option(
        "--max-tokens", "Most tokens to generate, or max: what the context holds", default="128", metavar="N", panel=END
    ),
]
MinTokens = Annotated[
    int | None,
    _option("--min-tokens", "Fewest tokens before the text may end", default="0", metavar="N", panel=END),
]
Stop = Annotated[list[str] | None, _option("--stop", "End before this text", metavar="TEXT", panel=END, many=True)]
StopTokenId = Annotated[
    list[int] | None, _option("--stop-token-id", "End with this token", metavar="ID", panel=END, many=True)
]
IgnoreEos = Annotated[bool, _option("--ignore-eos", "Go on past the model's end tokens", panel=END)]

Temperature = Annotated[
    float | None,
    _option("--temperature", "0 takes the likeliest token each time (greedy)", default="1.0", metavar="X", panel=DRAW),
]
TopK = Annotated[
    int | None,
    _option("--top-k", "Draw from the N likeliest tokens only; 0: all", default="0", metavar="N", panel=DRAW),
]
TopP = Annotated[
    float | None,
    _option(
        "--top-p",
        "Draw from the likeliest tokens that make up this probability",
        default="1.0",
        metavar="X",
        panel=DRAW,
    ),
]
MinP = Annotated[
    float | None,
    _option(
        "--min-p", "Drop tokens less likely than this share of the likeliest", default="0.0", metavar="X", panel=DRAW
    ),
]
TypicalP = Annotated[
    float | None,
    _option(
        "--typical-p",
        "Draw from the tokens nearest to the expected surprise that make up this probability",
        default="1.0",
        metavar="X",
        panel=DRAW,
    ),
]
Seed = Annotated[
    int | None,
    _option("--seed", "The same seed gives the same text", default="drawn; --json tells it", metavar="N", panel=DRAW),
]

RepetitionPenalty = Annotated[
    float | None,
    _option(
        "--repetition-penalty",
        "Above 1: less of what prompt and text hold already",
        default="1.0",
        metavar="X",
        panel=PENALTY,
    ),
]
PresencePenalty = Annotated[
    float | None,
    _option(
        "--presence-penalty",
        "Taken off the logits of tokens that the text holds",
        default="0.0",
        metavar="X",
        panel=PENALTY,
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    _option(
        "--frequency-penalty",
        "Taken off a token's logit each time that the text holds it",
        default="0.0",
        metavar="X",
        panel=PENALTY,
    ),
]
LogitBias = Annotated[
    list[str] | None,
    _option("--logit-bias", "Add X to the logit of a token", metavar="ID=X", panel=PENALTY, many=True),
]
BadWord = Annotated[
    list[str] | None, _option("--bad-word", "Never write this text", metavar="TEXT", panel=PENALTY, many=True)
]
AllowTokenIds = Annotated[
    str | None, _option("--allow-token-ids", "Draw from these tokens only", metavar="ID,ID,...", panel=PENALTY)
]

N = Annotated[
    int | None,
    _option("--n", "Answers to give, each drawn on its own", default="1", metavar="N", panel=OUTPUT),
]
Logprobs = Annotated[
    int | None,
    _option(
        "--logprobs",
        "Tell how likely each token was, and the N likeliest in its place",
        metavar="N",
        panel=OUTPUT,
    ),
]
PromptLogprobs = Annotated[
    int | None, _option("--prompt-logprobs", "The same for the tokens of the prompt", metavar="N", panel=OUTPUT)
]
Echo = Annotated[bool, _option("--echo", "Write the prompt before the text", panel=OUTPUT)]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: not those left out (None), off (False) or empty."""
    return {name: value for name, value in options.items() if value or (value == 0 and value is not False)}


def parse_max_tokens(text: str) -> int | None:
    """A number, or "max" for None. Raises InvalidParameterError."""
    return None if text == "max" else _whole("--max-tokens", text, "a whole number, or max")


def parse_logit_bias(entries: Sequence[str]) -> dict[int, float]:
    """Entries such as "42=-1.5" as a mapping. Raises InvalidParameterError."""
    biases: dict[int, float] = {}
    for entry in entries:
        token, equals, bias = entry.partition("=")
        try:
            biases[int(token)] = float(bias if equals else "")
        except ValueError:
            raise InvalidParameterError("--logit-bias", entry, "ID=X, such as 42=-1.5") from None
    return biases


def parse_ids(field: str, text: str | None) -> tuple[int, ...]:
    """A list such as "1,2,3" as ids, none for None. Raises InvalidParameterError."""
    return () if text is None else tuple(_whole(field, part, "token ids, such as 1,2,3") for part in text.split(","))


def _whole(field: str, text: str, expected: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidParameterError(field, text, expected) from None
