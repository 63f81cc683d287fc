"""`distaff batch`: a file of requests in, a file of answers out."""

import json as json_module
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import InvalidParameterError, UsageError
from ..serving.batch_jobs.formats import Endpoint
from ..serving.batch_jobs.line import Ids
from .batch_group import RUN, BatchGroup, RunCommand
from .batch_hosts import follow, is_complete, stopping_together
from .batch_options import (
    Defaults,
    EndpointOption,
    FormatOption,
    IdColumn,
    IdOption,
    Overwrite,
    Price,
    PromptColumn,
    RayAddress,
    RayResources,
    Resume,
    RunnerKind,
    RunnerOption,
    Seed,
    ServedModelName,
    ShardOption,
    Template,
    TolerateErrors,
    Workers,
)
from .batch_progress import BatchProgress, Standing
from .batch_ray import load, run_on_ray
from .batch_tables import print_scan, print_summary, scan_report
from .options import (
    ENGINE,
    Backend,
    Context,
    Coordinator,
    Debug,
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
    from ..serving.batch_jobs.formats import InputFiles
    from ..serving.batch_jobs.job import Job, JobSpec, Store
    from ..serving.batch_jobs.on_llm import LLMRun
    from ..serving.batch_jobs.prepare import Preparer
    from ..serving.limits import MachineLimits

app = typer.Typer(cls=BatchGroup, rich_markup_mode=None)

_WITH_ERRORS = 3
_GIVEN = "given by --price"
_WORTH_MEASURING = 5.0
"""Seconds of the device below which nobody asks for shares of the machine's limits: measuring those takes as long."""


@app.callback()
def batch() -> None:
    """Answer a file of requests."""


@app.command(RUN, cls=RunCommand, hidden=True)
def run(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file, a glob in quotes, or a URL (gs://, s3://).")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Where answers go: a file, or a URL.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A name (see 'distaff models'), a folder, a .gguf file or a hub id."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only look for lines that cannot be answered.")] = False,
    format: FormatOption = None,
    endpoint: EndpointOption = Endpoint.COMPLETIONS,
    prompt_column: PromptColumn = None,
    template: Template = None,
    id_column: IdColumn = None,
    defaults: Defaults = None,
    ids: IdOption = Ids.FAIL,
    served_model_name: ServedModelName = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    shard: ShardOption = None,
    runner: RunnerOption = RunnerKind.LOCAL,
    workers: Workers = 1,
    ray_address: RayAddress = None,
    ray_resources: RayResources = None,
    tolerate_errors: TolerateErrors = False,
    price: Price = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What weights and cache are held in.", rich_help_panel=ENGINE)
    ] = Dtype.BFLOAT16,
    kv_dtype: KVDtype = None,
    quantize: Quantize = None,
    backend: Backend = "auto",
    layout: Layout = None,
    devices: Devices = None,
    max_batch: MaxBatch = None,
    kv_memory: KVMemory = None,
    context: Context = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="The same bytes however often the job is stopped; slower.",
            rich_help_panel=ENGINE,
        ),
    ] = True,
    hosts: Hosts = None,
    coordinator: Coordinator = None,
    num_hosts: NumHosts = None,
    host: Host = None,
    host_timeout: HostTimeout = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a file of requests. No answer is lost or computed twice, however often the job is stopped.

    INPUT is JSON lines as OpenAI's batches have them (custom_id, method, url, body; the urls are
    /v1/chat/completions, /v1/completions and /v1/embeddings), or prompts: lines of text, CSV or Parquet.
    Answers go to OUTPUT in the order of INPUT; lines that cannot be answered to OUTPUT.errors.jsonl; what it took to
    OUTPUT.manifest.json. Until then everything is in OUTPUT.journal. SIGTERM stops within five seconds.

    \b
    Examples:
      distaff batch requests.jsonl answers.jsonl -m smollm2-135m-instruct
      distaff batch requests.jsonl answers.jsonl -m smollm2-135m-instruct --resume
      distaff batch requests.jsonl answers.jsonl --check
      distaff batch prompts.txt answers.jsonl -m smollm2-135m-instruct --endpoint chat --defaults '{"max_tokens": 64}'
      distaff batch 'reviews-*.csv' answers.jsonl -m smollm2-135m-instruct --template "Is this praise? {review}"
      distaff batch gs://bucket/in.jsonl gs://bucket/out.jsonl -m smollm2-135m-instruct --shard 0/4 --resume

    \b
    Exit codes:
      0 every line answered; 3 some lines failed; 75 stopped, --resume goes on; 1 failed; 2 wrong use

    \b
    --json prints one object:
      output, total, completed, failed, errors (by code), prompt_tokens, completion_tokens, total_tokens,
      runs, seconds (of all runs, loading included), busy_seconds, tokens_per_s, completion_tokens_per_s,
      tokens_per_s_per_chip, batch_occupancy, prefix_hit_rate, mfu, mbu (of the last run, null below 5 s), chips,
      chip_hours, dollars_per_chip_hour, price_source, dollars, dollars_per_million_tokens
      with --check: lines, good, bad, errors (by code), problems (where, code, message of the first 20), input
    """
    began = time.monotonic()
    with reporting(debug):
        if resume and overwrite:
            raise UsageError("--resume goes on and --overwrite starts anew: give one of them")
        if model is None and not check:
            raise UsageError("--model is missing: name what is to answer, or give --check")
        if runner is RunnerKind.RAY and (shard is not None or devices is not None):
            raise UsageError("--runner ray cuts the input itself and has own devices: drop --shard and --devices")
        if runner is RunnerKind.RAY and (hosts or num_hosts):
            raise UsageError("--runner ray has a model on each host that it uses: drop --hosts and --num-hosts")
        if price is not None and not price >= 0:
            raise InvalidParameterError("--price", price, "dollars for a chip-hour, 0 or more")
        prepare_layout(layout, devices)
        joined = read_hosts(hosts, coordinator, num_hosts, host, host_timeout, layout)
        if joined is not None:
            keep_stdout()
        options: dict[str, Any] = {
            "dtype": dtype.value, "backend": backend, "offline": offline or None, "deterministic": deterministic,
            **given(max_batch=max_batch, context=context, layout=layout, quantize=quantize, kv_dtype=kv_dtype,
                    hosts=joined,
                    kv_memory=None if kv_memory is None else parse_size("--kv-memory", kv_memory)),
        }  # fmt: skip
        from ..serving.batch_jobs.cost import Price
        from ..serving.batch_jobs.formats import InputFiles, InputSpec
        from ..serving.batch_jobs.job import Job, JobSpec, open_store
        from ..serving.batch_jobs.prepare import Preparer, checking_preparer
        from ..serving.batch_jobs.ray_worker import RayPlan
        from ..serving.batch_jobs.scan import scan_input
        from ..serving.batch_jobs.shard import WHOLE, Shard
        from ..serving.batch_jobs.stop import StopSignals

        part = WHOLE if shard is None else Shard.parse(shard)
        place = output if shard is None else part.name(output)
        if joined is not None and joined.index:
            if not (resume and is_complete(place)):
                follow(model or "", options)
            return
        spec = InputSpec(
            (source,),
            format=format,
            endpoint=endpoint,
            prompt_column=prompt_column,
            template=template,
            id_column=id_column,
            defaults=_object("--defaults", defaults),
        )
        given_price = None if price is None else Price(price, _GIVEN)
        job_spec = JobSpec(ids=ids, seed=seed, shard=part, runner=runner.value, price=given_price, settings=given(
            served_model_names=served_model_name, defaults=spec.defaults or None, template=template,
            prompt_column=prompt_column, id_column=id_column, endpoint=endpoint.value,
            quantize=quantize, kv_dtype=kv_dtype,
        ))  # fmt: skip
        files = InputFiles(spec)
        names = served_model_name or ()
        resources = _object("--ray-resources", ray_resources)
        preparer = Preparer(None, job_seed=seed, served_names=names)
        with StopSignals() as signals:
            if check:
                if model is not None:
                    preparer = checking_preparer(
                        model, offline=offline or None, context=context, seed=seed, names=names
                    )
                _check(files, job_spec, preparer, as_json=json)
                return
            store = open_store(place)
            found = scan_input(files, job_spec.ids, preparer.check)
            print_scan(found)
            with Job(files, found, store, job_spec, resume=resume, overwrite=overwrite) as job:
                if job.complete is not None:
                    _report(store, job.complete, price, as_json=json, tolerate=tolerate_errors)
                    return
                if job.runner != runner:
                    raise UsageError(f"{store}: that job was begun with --runner {job.runner}; give the same")
                if runner is RunnerKind.RAY:
                    plan = RayPlan(
                        partial(load, model or "", options),
                        files,
                        found,
                        output,
                        replace(job_spec, now=job.now),
                        name=model or "",
                        dtype=dtype.value,
                        layout=layout,
                        served_names=tuple(names),
                    )
                    manifest = run_on_ray(
                        job,
                        plan,
                        workers,
                        ray_address,
                        resources,
                        resume=resume,
                        overwrite=overwrite,
                        stopping=lambda: signals.asked,
                    )
                    _report(store, manifest, price, as_json=json, tolerate=tolerate_errors)
                    return
                with stopping_together(joined, signals) as ending:
                    with ProgressDisplay(model or "") as display:
                        from ..serving import LLM
                        from ..serving.batch_jobs.chips import attached_chip, limits_of
                        from ..serving.batch_jobs.on_llm import LLMRun
                        from ..serving.garbage import settle_memory

                        llm = LLM(model or "", on_progress=display, **options)
                        ending.callback(llm.close)
                        print_remarks(llm, layout)
                        llm.engine.warm_up()
                        settle_memory()
                    run = LLMRun(
                        llm,
                        job,
                        name=model or "",
                        dtype=dtype.value,
                        layout=layout,
                        seed=seed,
                        served_names=names,
                        began=began,
                    )
                    with BatchProgress(lambda: _standing(job, run)) as progress:
                        outcome = run.run(stopping=lambda: signals.asked, on_step=progress.update)
                    worth_it = run.figures()["device_seconds"] >= _WORTH_MEASURING
                    limits = limits_of(llm, attached_chip(), dtype.value) if worth_it else None
                    _report(store, outcome.manifest, price, limits, as_json=json, tolerate=tolerate_errors)


@app.command("merge")
def merge(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="What was given to each part as OUTPUT.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an OUTPUT that exists.")] = False,
    price: Annotated[
        float | None,
        typer.Option("--price", help="Dollars for a chip-hour. [default: the hardware table's]", metavar="X"),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Join the parts that 'distaff batch --shard I/N' has made, once all of them are complete.

    \b
    Examples:
      distaff batch merge answers.jsonl
      distaff batch merge gs://bucket/out.jsonl --json

    \b
    Exit codes and --json are those of 'distaff batch'.
    """
    with reporting(debug):
        from ..serving.batch_jobs.cost import Price
        from ..serving.batch_jobs.job import open_store
        from ..serving.batch_jobs.merge import merge_shards

        store = open_store(output)
        given_price = None if price is None else Price(price, _GIVEN)
        manifest = merge_shards(output, store, overwrite=overwrite, price=given_price)
        _report(store, manifest, price, as_json=json)


def _object(option: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json_module.loads(text)
    except ValueError as error:
        raise InvalidParameterError(option, text, f"a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise InvalidParameterError(option, text, "a JSON object")
    return value


def _check(files: "InputFiles", spec: "JobSpec", preparer: "Preparer", *, as_json: bool) -> None:
    """Reports every line that cannot be answered; with a model its prompts are counted in tokens too."""
    from ..serving.batch_jobs.scan import scan_input

    found = scan_input(files, spec.ids, preparer.check)
    print_scan(found)
    if as_json:
        print_json(scan_report(found))
    else:
        typer.echo(f"{found.lines} lines, {found.lines - found.bad} can be answered")
    if found.bad:
        raise typer.Exit(_WITH_ERRORS)


def _standing(job: "Job", run: "LLMRun") -> Standing:
    index = job.journal.index
    tokens = index.prompt_tokens + index.completion_tokens
    return Standing(index.done, sum(index.failed.values()), job.total, tokens, run.figures())


def _report(
    store: "Store",
    manifest: Mapping[str, Any],
    price: float | None,
    limits: "MachineLimits | None" = None,
    *,
    as_json: bool,
    tolerate: bool = False,
) -> None:
    """Prints what a job has come to. Raises typer.Exit where lines failed, unless that is to be tolerated."""
    from ..serving.batch_jobs.cost import Price, price_of
    from ..serving.batch_jobs.work import summary

    cost = price_of(manifest) if price is None else Price(price, _GIVEN)
    told = {"output": str(store), **summary(manifest, price=cost, limits=limits)}
    if as_json:
        print_json(told)
    else:
        print_summary(told)
    if told["failed"] and not tolerate:
        raise typer.Exit(_WITH_ERRORS)
