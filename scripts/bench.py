"""`distaff bench`: how fast this machine runs a model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import UsageError
from . import load_options as o
from .bench_tables import print_reports
from .options import (
    Backend,
    Context,
    Coordinator,
    Debug,
    Deterministic,
    Devices,
    Dtype,
    Host,
    Hosts,
    HostTimeout,
    Json,
    KVDtype,
    KVMemory,
    Layout,
    MaxBatch,
    NumHosts,
    Offline,
    Quantize,
    parse_size,
)
from .output import print_json
from .progress import ProgressDisplay
from .reporting import reporting
from .sampling_options import given
from .startup import keep_stdout, prepare_layout, print_remarks, read_hosts

if TYPE_CHECKING:
    from ..serving import LLM, Request
    from ..serving.goodput import Goodput
    from ..serving.limits import MachineLimits
    from ..serving.workload import Item

app = typer.Typer(rich_markup_mode=None)


class Policy(StrEnum):
    """Scheduling policies, and all of them one after the other."""

    CONTINUOUS = "continuous"
    DYNAMIC = "dynamic"
    STATIC = "static"
    ALL = "all"


class Sampling(StrEnum):
    """How tokens are drawn."""

    GREEDY = "greedy"
    HEAVY = "heavy"


SAMPLING: Mapping[Sampling, Mapping[str, Any]] = {
    Sampling.GREEDY: {"temperature": 0.0},
    Sampling.HEAVY: {
        "temperature": 0.8,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.2,
        "logprobs": 5,
    },
}


@app.callback()
def bench() -> None:
    """Measure how fast this machine runs a model."""


@app.command("offline")
def bench_offline(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name or a path, as 'distaff generate' takes it.")
    ] = "smollm2-135m-instruct",
    requests: o.Requests = None,
    prompt_len: o.PromptLen = None,
    output_len: o.OutputLen = None,
    shared_prefix: o.SharedPrefix = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of lengths and tokens. [default: 0]", metavar="N", rich_help_panel=o.WORK),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help='Requests from a file instead, {"prompt": text or token ids, "max_tokens": N} on each line.',
            metavar="FILE",
            rich_help_panel=o.WORK,
        ),
    ] = None,
    sampling: Annotated[
        Sampling,
        typer.Option(
            "--sampling",
            help="heavy: temperature 0.8, top-p 0.95, penalties and five logprobs everywhere.",
            rich_help_panel=o.WORK,
        ),
    ] = Sampling.GREEDY,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What weights and cache are held in.")] = Dtype.BFLOAT16,
    kv_dtype: KVDtype = None,
    quantize: Quantize = None,
    backend: Backend = "auto",
    layout: Layout = None,
    one_program: Annotated[
        bool, typer.Option("--one-program", help="Replicas of the layout step together instead of on their own.")
    ] = False,
    devices: Devices = None,
    expert_load: Annotated[
        bool, typer.Option("--expert-load", help="Count how often each expert of a mixture is chosen.")
    ] = False,
    policy: Annotated[
        Policy, typer.Option("--policy", help="When waiting requests may start; all compares the three.")
    ] = Policy.CONTINUOUS,
    max_batch: MaxBatch = None,
    batch_timeout: Annotated[
        float | None,
        typer.Option("--batch-timeout", help="With --policy dynamic: most seconds to wait for a batch.", metavar="X"),
    ] = None,
    kv_memory: KVMemory = None,
    context: Context = None,
    deterministic: Deterministic = False,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Times to run it all; the median one is reported.", metavar="N", min=1)
    ] = 3,
    warm_up: Annotated[int, typer.Option("--warm-up", help="Requests to run untimed before.", metavar="N", min=0)] = 4,
    goodput: o.Limits = None,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    num_hosts: NumHosts = None,
    host: Host = None,
    host_timeout: HostTimeout = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run requests that are all there from the start, and report how fast that went.

    Tokens are random, drawing is greedy and end tokens are ignored, unless options say otherwise. Loading, compiling
    and the warm-up are not in the times. MFU and MBU are shares of what this machine was measured to do in the same
    run.

    \b
    Examples:
      distaff bench offline
      distaff bench offline --policy all --goodput ttft:2000,tpot:100
      distaff bench offline --requests 8 --prompt-len 512:512 --output-len 1:1
      distaff bench offline --requests 32 --prompt-len 16:16 --output-len 16:16 --shared-prefix 300
      distaff bench offline --file requests.jsonl --sampling heavy --json

    \b
    --json prints one object:
      model, backend, dtype, quantize, kv_dtype, policy, sampling, requests, prompt_tokens, output_tokens, elapsed_s,
      cpu_s (of this process), output_tokens_per_s, total_tokens_per_s, requests_per_s, rounds, failed,
      ttft_ms, tpot_ms, itl_ms, e2el_ms (p50, p90, p99, mean of each), prefill and decode (seconds, steps, tokens,
      tokens_per_s, mfu, mbu, bound of each), steps, host_gap_ms_per_step, batch_occupancy,
      padding_waste, prefix_hit_rate, preemptions, compiles, unexpected_compiles, goodput,
      limits, load_s, warm_up_s; with --expert-load experts (chosen, waited, uneven, most_uneven, layers)
    With --policy all, these are those of the first one, and "policies" lists such an object of each.
    """
    with reporting(debug):
        drawn = o.drawn(requests, prompt_len, output_len, shared_prefix) | given(seed=seed)
        if file is not None:
            o.refuse_together("with --file", **dict.fromkeys(drawn, True))
        if policy not in (Policy.DYNAMIC, Policy.ALL):
            o.refuse_together("without --policy dynamic", batch_timeout=batch_timeout)
        options = {
            "dtype": dtype.value,
            "quantize": quantize,
            "kv_dtype": kv_dtype,
            "backend": backend,
            "offline": offline or None,
            "max_batch": max_batch,
            "batch_timeout": batch_timeout,
            "kv_memory": None if kv_memory is None else parse_size("--kv-memory", kv_memory),
            "context": context,
            "deterministic": deterministic or None,
            "layout": layout,
            "one_program": one_program or None,
            "expert_load": expert_load or None,
        }
        prepare_layout(layout, devices)
        options["hosts"] = read_hosts(hosts, coordinator, num_hosts, host, host_timeout, layout)
        if options["hosts"] is not None:
            keep_stdout()
        from ..serving.goodput import Goodput
        from ..serving.workload import read_workload, uniform_workload

        def workload(llm: "LLM") -> "Sequence[Item]":
            if file is not None:
                return read_workload(file, _encoder(llm))
            return uniform_workload(**drawn, vocab_size=llm.config.vocab_size)

        run = _Run(
            model, options, workload, sampling, rounds, warm_up, None if goodput is None else Goodput.parse(goodput)
        )
        if policy is not Policy.ALL:
            reports = [run.report(policy)]
        else:
            reports = [run.report(each) for each in Policy if each is not Policy.ALL]
        if options["hosts"] is not None and options["hosts"].index:
            return  # host 0 prints
        if json:
            print_json({**reports[0], "policies": reports} if policy is Policy.ALL else reports[0])
        else:
            print_reports(reports)


@dataclass
class _Run:
    """What is the same for all policies. The limits of the machine are measured once."""

    model: str
    options: dict[str, Any]
    workload: "Callable[[LLM], Sequence[Item]]"
    sampling: Sampling
    rounds: int
    warm_up: int
    goodput: "Goodput | None"
    limits: "MachineLimits | None" = None

    def report(self, policy: Policy) -> dict[str, Any]:
        import jax.numpy as jnp

        from ..serving.limits import measure_limits
        from ..serving.llm import KV_DTYPES
        from ..serving.measurement import report, run_round

        started = time.perf_counter()
        llm = self._load(policy)
        loaded = time.perf_counter()
        if llm.follows:
            llm.follow()
            return {}
        try:
            items = self.workload(llm)
            llm.engine.warm_up()
            run_round(llm.engine, self._requests(items[: self.warm_up], "warm-up"))
            warm = time.perf_counter()
            self.limits = self.limits or measure_limits(llm.backend, self.options["dtype"])
            measured = [run_round(llm.engine, self._requests(items, f"round {n}")) for n in range(self.rounds)]
            experts = llm.engine.metrics.experts
        finally:
            llm.close()
        num_bytes = 4 if self.options["dtype"] == Dtype.FLOAT32 else 2
        scheme, kv_dtype = self.options["quantize"], self.options["kv_dtype"]
        return {
            "model": self.model,
            "backend": llm.backend.name,
            "dtype": self.options["dtype"],
            "quantize": scheme,
            "kv_dtype": kv_dtype,
            "policy": policy.value,
            "sampling": self.sampling.value,
            **report(
                measured,
                config=llm.config,
                limits=self.limits,
                weight_bytes=llm.weight_bytes,
                kv_bytes=jnp.dtype(KV_DTYPES[kv_dtype]).itemsize if kv_dtype else num_bytes,
                goodput=self.goodput,
            ),
            "limits": asdict(self.limits),
            **({} if experts is None else {"experts": experts.snapshot()}),
            "load_s": loaded - started,
            "warm_up_s": warm - loaded,
        }

    def _load(self, policy: Policy) -> "LLM":
        from ..serving import LLM

        given = {name: value for name, value in self.options.items() if value is not None}
        with ProgressDisplay(self.model) as display:
            llm = LLM(self.model, policy=policy.value, on_progress=display, **given)
        print_remarks(llm, self.options["layout"])
        return llm

    def _requests(self, items: "Sequence[Item]", salt: str) -> "list[Request]":
        """The salt keeps one round's prompts out of reach of the next."""
        from ..serving import Request, SamplingParams

        drawing = SAMPLING[self.sampling]
        return [
            Request(
                item.prompt,
                SamplingParams(max_tokens=item.max_tokens, ignore_eos=True, seed=number, **drawing),
                cache_salt=salt,
            )
            for number, item in enumerate(items)
        ]


def _encoder(llm: "LLM") -> "Callable[[str], Sequence[int]]":
    """Refuses texts, but not token ids, where the model has no tokenizer."""

    def encode(text: str) -> "Sequence[int]":
        if llm.tokenizer is None:
            raise UsageError("--file holds texts, but the model has no tokenizer; give token ids")
        return llm.tokenizer.encode(text)

    return encode
