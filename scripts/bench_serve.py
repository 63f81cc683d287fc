"""`distaff bench serve`: load for a server, and how it stands it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from ..backends.errors import InvalidParameterError, UsageError
from . import load_options as o
from .bench_serve_table import print_report
from .client_options import Ca, TokenFile, read_token
from .options import Debug, Json
from .output import print_json
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .sampling_options import given


def bench_serve(
    target: o.Address = "127.0.0.1:50051",
    model: o.Model = "",
    chat: o.Chat = False,
    token_file: TokenFile = None,
    ca: Ca = None,
    concurrency: o.Concurrency = None,
    rate: o.Rate = None,
    arrivals: o.Arrivals = None,
    trace: o.Trace = None,
    drain: o.Drain = None,
    connections: o.Connections = None,
    warm_up: o.WarmUp = 4,
    requests: o.Requests = None,
    prompt_len: o.PromptLen = None,
    output_len: o.OutputLen = None,
    shared_prefix: o.SharedPrefix = None,
    seed: o.Seed = 0,
    vocab_size: o.VocabSize = None,
    sweep: o.Sweep = None,
    seconds: o.Seconds = None,
    share: o.Share = None,
    goodput: o.Limits = None,
    plot: o.Plot = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask a running server for many answers, and report how fast they come.

    Prompts are random tokens, drawing is greedy, and every answer has exactly the length that was drawn: end tokens are
    ignored. Times are the client's: TTFT to the first token, TPOT for each token after it in the mean, ITL from one
    message with tokens to the next, e2el to the last token. What the load generator itself takes is reported too: one
    that has no time measures itself.

    \b
    Examples:
      distaff bench serve --concurrency 32
      distaff bench serve --rate 4 --arrivals gamma:0.25 --goodput ttft:500,tpot:100
      distaff bench serve --sweep 1:64 --goodput ttft:500,tpot:100 --plot knee
      distaff bench serve --trace requests.jsonl --rate 8 --json
      distaff bench serve --target http://127.0.0.1:8000 --chat

    \b
    --json prints one object:
      target, protocol, chat, connections, model, loop, offered_rate, offered_concurrency, trace, seed, requests,
      failed, errors, prompt_tokens, cached_tokens, output_tokens, duration_s, requests_per_s,
      output_tokens_per_s, total_tokens_per_s, concurrency (mean, max), ttft_ms, tpot_ms, itl_ms, e2el_ms, late_ms
      (p50, p90, p99, mean of each), goodput (the limits, requests_per_s, share), generator (cpu_s, cpu_share,
      cpu_us_per_message, loop_late_ms, limits: whether it had too little time)
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
        if sweep is not None:
            o.refuse_together("with --sweep, which sends each rate for some seconds", requests=requests)
        else:
            o.refuse_together("without --sweep", seconds=seconds, share=share)
        if trace is not None:
            lengths = {"prompt_len": prompt_len, "output_len": output_len, "shared_prefix": shared_prefix}
            o.refuse_together("with --trace", arrivals=arrivals, requests=requests, **lengths)
        if rate is None and sweep is None:
            o.refuse_together("without --rate or --sweep", arrivals=arrivals)
            if trace is None:
                o.refuse_together("in a closed loop", drain=drain)
        if chat:
            o.refuse_together("with --chat, whose prompts are words", vocab_size=vocab_size)
        if plot is not None:
            check_plots()
        limits = None if goodput is None else Goodput.parse(goodput)
        drawn = o.drawn(requests, prompt_len, output_len, shared_prefix)
        work = Work(**drawn, seed=seed, trace=trace, vocab_size=vocab_size)
        is_open = rate is not None or sweep is not None or (trace is not None and concurrency is None)
        load = Load(
            target,
            work,
            model=model,
            token=read_token(token_file),
            ca=ca,
            chat=chat,
            connections=connections or 1,
            concurrency=concurrency if concurrency is not None or is_open else 16,
            rate=rate,
            pattern=Pattern.parse(arrivals or "poisson"),
            drain=drain,
            warm_up=warm_up,
        )
        if load.protocol == "http":
            o.refuse_together("over HTTP, where each request has its own", connections=connections)
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

                plan = Plan(low, most=high, **given(share=share, seconds=seconds))
                report = run_sweep(load, plan, limits, on_rate=on_rate)
            if plot is not None:
                _tell(plot_sweep(plot, f"{report['model']} at {target}", report))
        _warn(report)
        if json:
            print_json(report)
        else:
            print_report(report)


def _warn(report: Mapping[str, Any]) -> None:
    """Says where the generator measured itself."""
    for point in report.get("points", [report]):
        if point["generator"]["limits"]:
            at = f" at {point['rate']:g} requests a second" if "rate" in point else ""
            own = point["generator"]
            took = f"{own['cpu_share']:.0%} of a core and was {own['loop_late_ms']['p90']:.1f} ms late (p90)"
            typer.echo(f"the load generator took {took}{at}: times may be its own", err=True)


def _tell(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}", err=True)


def _rates(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if found is None or not 0 < float(found[1]) <= float(found[2]):
        raise InvalidParameterError("--sweep", text, "LOW:HIGH in requests a second, such as 1:64")
    return float(found[1]), float(found[2])
