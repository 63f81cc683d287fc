"""The options of benchmarks: what requests ask, and when `distaff bench serve` sends them. Those that are left out are
None, so that one without effect is refused instead of passed over."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..backends.errors import UsageError
from .sampling_options import given
from .spans import parse_span

LOAD = "When requests are sent"
WORK = "What is asked for"
SWEEP = "Looking for the knee"
OUT = "What is reported"


def _count(name: str, what: str, panel: str, *, least: int = 1) -> Any:
    return typer.Option(name, help=what, metavar="N", min=least, rich_help_panel=panel)


Address = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        help="The server: HOST:PORT or grpcs://HOST:PORT for gRPC, http://HOST:PORT for the OpenAI API.",
        metavar="ADDRESS",
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="What requests name. [default: what is served]")]
Chat = Annotated[
    bool,
    typer.Option("--chat", help="Prompts are messages of a user, made of words: /v1/chat/completions over HTTP."),
]
Connections = Annotated[
    int | None,
    _count(
        "--connections",
        "Of gRPC, which take requests in turn. HTTP has one for each request under way. [default: 1]",
        LOAD,
    ),
]
Concurrency = Annotated[
    int | None,
    _count(
        "--concurrency", "Closed loop: so many at once, each followed by the next. [default: 16, without a rate]", LOAD
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        help="Open loop: so many requests a second, whether or not others are answered.",
        metavar="X",
        rich_help_panel=LOAD,
    ),
]
Arrivals = Annotated[
    str | None,
    typer.Option(
        "--arrivals",
        help="Open loop: poisson, even, gamma:SHAPE (below 1 comes in clusters) or burst:N. [default: poisson]",
        metavar="PATTERN",
        rich_help_panel=LOAD,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        help='Requests from JSON lines, {"at": seconds, "prompt" or "prompt_len", "max_tokens" or "output_len"}; '
        "--rate presses or stretches them.",
        metavar="FILE",
        rich_help_panel=LOAD,
    ),
]
Drain = Annotated[
    float | None,
    typer.Option(
        "--drain",
        help="Open loop: seconds after the last sending in which answers count. [default: all do]",
        metavar="X",
        min=0,
        rich_help_panel=LOAD,
    ),
]
WarmUp = Annotated[
    int,
    typer.Option("--warm-up", help="Requests before that do not count.", metavar="N", min=0, rich_help_panel=LOAD),
]

Requests = Annotated[int | None, _count("--requests", "How many. [default: 64]", WORK)]
PromptLen = Annotated[
    str | None,
    typer.Option(
        "--prompt-len",
        help="Tokens of a prompt, evenly distributed. [default: 32:384]",
        metavar="LOW:HIGH",
        rich_help_panel=WORK,
    ),
]
OutputLen = Annotated[
    str | None,
    typer.Option(
        "--output-len",
        help="Tokens of an answer, evenly distributed. [default: 16:192]",
        metavar="LOW:HIGH",
        rich_help_panel=WORK,
    ),
]
SharedPrefix = Annotated[
    int | None,
    _count("--shared-prefix", "Tokens before every prompt, the same ones. [default: 0]", WORK, least=0),
]
Seed = Annotated[int, typer.Option("--seed", help="Of lengths, tokens and moments.", metavar="N", rich_help_panel=WORK)]
VocabSize = Annotated[
    int | None,
    _count("--vocab-size", "Token ids are drawn below it. [default: what the server says]", WORK, least=2),
]

Sweep = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="Try rates from LOW on, doubled until too few requests are in time, then between.",
        metavar="LOW:HIGH",
        rich_help_panel=SWEEP,
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        "--seconds", help="How long each rate is sent. [default: 20]", metavar="X", min=0.1, rich_help_panel=SWEEP
    ),
]
Share = Annotated[
    float | None,
    typer.Option(
        "--share",
        help="Of the requests, must be in time. [default: 0.9]",
        metavar="X",
        min=0.01,
        max=1.0,
        rich_help_panel=SWEEP,
    ),
]
Limits = Annotated[
    str | None,
    typer.Option(
        "--goodput",
        help="Count requests that keep these limits, in milliseconds; one or two of them will do.",
        metavar="ttft:MS,tpot:MS,e2el:MS",
        rich_help_panel=OUT,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw it: writes PATH.png and PATH.html.", metavar="PATH", rich_help_panel=OUT),
]


def drawn(
    requests: int | None, prompt_len: str | None, output_len: str | None, shared_prefix: int | None
) -> dict[str, Any]:
    """Those of these options that were given, as `uniform_workload` takes them.

    Raises:
        InvalidParameterError: a length is no LOW:HIGH.
    """
    return given(
        requests=requests,
        prompt_len=None if prompt_len is None else parse_span("--prompt-len", prompt_len),
        output_len=None if output_len is None else parse_span("--output-len", output_len),
        shared_prefix=shared_prefix,
    )


def refuse_together(when: str, **options: Any) -> None:
    """
    Args:
        when: what makes the options idle, such as "with --sweep".

    Raises:
        UsageError: one of them was given.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} has no effect {when}: leave it out")
