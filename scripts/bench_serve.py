"""`distaff bench serve`: load for a server, and how it stands it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..backends.errors import InvalidParameterError, UsageError
from .bench_serve_table import print_report
from .client_options import Ca, TokenFile, read_token
from .options import Debug, Json
from .output import print_json
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .spans import parse_span

LOAD = "When requests are sent"
WORK = "What is asked for"
SWEEP = "Looking for the knee"
OUT = "What is reported"


def bench_serve(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="The server: HOST:PORT or grpcs://HOST:PORT for gRPC, http://HOST:PORT for the OpenAI API.",
            metavar="ADDRESS",
        ),
    ] = "127.0.0.1:50051",
    model: Annotated[str, typer.Option("--model", "-m", help="What requests name. [default: what is served]")] = "",
    token_file: TokenFile = None,
    ca: Ca = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            help="Closed loop: so many at once, each followed by the next. [default: 16, without a rate]",
            metavar="N",
            min=1,
            rich_help_panel=LOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            help="Open loop: so many requests a second, whether or not others are answered.",
            metavar="X",
            rich_help_panel=LOAD,
        ),
    ] = None,
    arrivals: Annotated[
        str,
        typer.Option(
            "--arrivals",
            help="With --rate: poisson, even, gamma:SHAPE (below 1 comes in clusters) or burst:N.",
            metavar="PATTERN",
            rich_help_panel=LOAD,
        ),
    ] = "poisson",
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help='Requests from JSON lines, {"at": seconds, "prompt" or "prompt_len", "max_tokens" or "output_len"}; '
            "--rate presses or stretches them.",
            metavar="FILE",
            rich_help_panel=LOAD,
        ),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            "--drain",
            help="Open loop: seconds after the last sending in which answers count. [default: all do]",
            metavar="X",
            rich_help_panel=LOAD,
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option("--warm-up", help="Requests before that do not count.", metavar="N", rich_help_panel=LOAD)
    ] = 4,
    requests: Annotated[
        int, typer.Option("--requests", help="How many.", metavar="N", min=1, rich_help_panel=WORK)
    ] = 64,
    prompt_len: Annotated[
        str,
        typer.Option(
            "--prompt-len", help="Tokens of a prompt, evenly distributed.", metavar="LOW:HIGH", rich_help_panel=WORK
        ),
    ] = "32:384",
    output_len: Annotated[
        str,
        typer.Option(
            "--output-len", help="Tokens of an answer, evenly distributed.", metavar="LOW:HIGH", rich_help_panel=WORK
        ),
    ] = "16:192",
    shared_prefix: Annotated[
        int,
        typer.Option(
            "--shared-prefix",
            help="Tokens before every prompt, the same ones.",
            metavar="N",
            min=0,
            rich_help_panel=WORK,
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option("--seed", help="Of lengths, tokens and moments.", metavar="N", rich_help_panel=WORK)
    ] = 0,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size",
            help="Token ids are drawn below it. [default: what the server says]",
            metavar="N",
            min=2,
            rich_help_panel=WORK,
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            help="Try rates from LOW on, doubled until too few requests are in time, then between.",
            metavar="LOW:HIGH",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="How long each rate is sent.", metavar="X", rich_help_panel=SWEEP),
    ] = 20.0,
    share: Annotated[
        float,
        typer.Option(
            "--share", help="Of the requests, must be in time.", metavar="X", min=0.01, max=1.0, rich_help_panel=SWEEP
        ),
    ] = 0.9,
    goodput: Annotated[
        str | None,
        typer.Option(
            "--goodput",
            help="Count requests that keep these limits, in milliseconds; one or two of them will do.",
            metavar="ttft:MS,tpot:MS,e2el:MS",
            rich_help_panel=OUT,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw it: writes PATH.png and PATH.html.", metavar="PATH", rich_help_panel=OUT),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a running server for many answers, and report how fast they come.

    Prompts are random tokens, drawing is greedy, and every answer has exactly the length that was drawn: end tokens are
    ignored. Times are the client's: TTFT to the first token, TPOT for each token after it in the mean, ITL from one
    message with tokens to the next, e2el to the last token.

    \b
    Examples:
      distaff bench serve --concurrency 32
      distaff bench serve --rate 4 --arrivals gamma:0.25 --goodput ttft:500,tpot:100
      distaff bench serve --sweep 1:64 --goodput ttft:500,tpot:100 --plot knee
      distaff bench serve --trace requests.jsonl --rate 8 --json
      distaff bench serve --target http://127.0.0.1:8000 --vocab-size 49152

    \b
    --json prints one object:
      target, protocol, model, loop, offered_rate, offered_concurrency, trace, seed, requests, failed, errors,
      prompt_tokens, cached_tokens, output_tokens, duration_s, requests_per_s, output_tokens_per_s,
      total_tokens_per_s, concurrency (mean, max), ttft_ms, tpot_ms, itl_ms, e2el_ms, late_ms (p50, p90,
      p99, mean of each), goodput (the limits, requests_per_s, share)
    with --sweep instead of the figures:
      share, points (rate, kept and the figures of each rate), knee, reached_most, limits
    """
    with reporting(debug):
        from ..serving.goodput import Goodput
        from ..serving.load.arrivals import Pattern
        from ..serving.load.plots import check_plots, plot_run, plot_sweep
        from ..serving.load.run import Load, Work, measure
        from ..serving.load.run import sweep as run_sweep
        from ..serving.load.sweep import Plan

        if concurrency is not None and (rate is not None or sweep is not None):
            raise UsageError("--concurrency is a closed loop, --rate and --sweep are open ones: give one of them")
        if sweep is not None and (rate is not None or trace is not None):
            raise UsageError("--sweep finds the rate itself, with random prompts: leave --rate and --trace out")
        if plot is not None:
            check_plots()
        limits = None if goodput is None else Goodput.parse(goodput)
        spans = {
            "prompt_len": parse_span("--prompt-len", prompt_len),
            "output_len": parse_span("--output-len", output_len),
        }
        work = Work(requests, **spans, shared_prefix=shared_prefix, seed=seed, trace=trace, vocab_size=vocab_size)
        is_open = rate is not None or sweep is not None or trace is not None
        load = Load(
            target,
            work,
            model=model,
            token=read_token(token_file),
            ca=ca,
            concurrency=concurrency if concurrency is not None or is_open else 16,
            rate=rate,
            pattern=Pattern.parse(arrivals),
            drain=drain,
            warm_up=warm_up,
        )
        if sweep is None:
            with ProgressDisplay(target) as display:
                report, records = measure(load, limits, lambda done, total: display(Step("Asking", done, total)))
            if plot is not None:
                _tell(plot_run(plot, f"{report['model']} at {target}", records, report))
        else:
            low, high = _rates(sweep)
            with ProgressDisplay(target) as display:

                def on_rate(rate: float) -> Callable[[int, int], None]:
                    return lambda done, total: display(Step(f"{rate:g} requests a second of", done, total))

                report = run_sweep(load, Plan(low, most=high, share=share), limits, seconds=seconds, on_rate=on_rate)
            if plot is not None:
                _tell(plot_sweep(plot, f"{report['model']} at {target}", report))
        if json:
            print_json(report)
        else:
            print_report(report)


def _tell(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}", err=True)


def _rates(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if found is None or not 0 < float(found[1]) <= float(found[2]):
        raise InvalidParameterError("--sweep", text, "LOW:HIGH in requests a second, such as 1:64")
    return float(found[1]), float(found[2])
