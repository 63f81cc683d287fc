"""`distaff sweep`: which layout is best for a model, chips and a workload."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..backends.errors import UsageError
from .hardware import ChipsFile, Figures, Prices, chip_table
from .options import Debug, Json, Offline
from .output import print_json
from .reporting import reporting
from .startup import prepare_devices
from .sweep_request import parse_time
from .sweep_rows import Folder, diff, emit, explain, report
from .sweep_tables import print_sweep

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def sweep() -> None:
    """Find the best layout: count all candidates, compile the best, explain them, write one out."""


@app.command("plan")
def plan(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="Alias, folder, hub id, config.json, or FAMILY:layers=N,embed=N,..."),
    ],
    hw: Annotated[
        str,
        typer.Option(
            "--hw", metavar="CHIP:SHAPE,...", help="Such as v6e:2x4,v5e:4x4,h100:8; v5e:16x16*2 is two slices."
        ),
    ],
    phase: Annotated[Literal["prefill", "decode", "both"], typer.Option("--phase", help="What the chips do.")] = "both",
    isl: Annotated[int, typer.Option("--isl", metavar="N", help="Tokens of a prompt.")] = 2048,
    osl: Annotated[int, typer.Option("--osl", metavar="N", help="Tokens of an answer.")] = 256,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="JSON lines with input_tokens and output_tokens, in place of --isl and --osl.",
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option("--batch", metavar="N|A:B", help="Requests decoded at once on the slice; A:B is powers of two."),
    ] = "1:64",
    chunk: Annotated[
        str, typer.Option("--chunk", metavar="N|A:B", help="Tokens of a prefill step, of each replica.")
    ] = "2048",
    weights: Annotated[str, typer.Option("--weights", metavar="P,...", help="fp32, bf16, int8, fp8, int4.")] = "bf16",
    activations: Annotated[
        str, typer.Option("--activations", metavar="P,...", help="What arithmetic is done in.")
    ] = "bf16",
    kv: Annotated[str, typer.Option("--kv", metavar="P,...", help="What the cache is held in.")] = "bf16",
    axes: Annotated[
        str | None, typer.Option("--axes", metavar="A,...", help="Mesh axes that may be split. [default: all]")
    ] = None,
    slo_ttft: Annotated[
        str | None, typer.Option("--slo-ttft", metavar="TIME", help="Longest time to the first token, such as 500ms.")
    ] = None,
    slo_tpot: Annotated[
        str | None, typer.Option("--slo-tpot", metavar="TIME", help="Longest time of a token, such as 30ms.")
    ] = None,
    objective: Annotated[
        Literal["latency", "throughput", "cost", "energy", "pareto"],
        typer.Option(
            "--objective", help="What the order is by; pareto: nothing is better in both latency and throughput."
        ),
    ] = "pareto",
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="FILE", help="Efficiencies, as calibrate wrote them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to keep it: sweep.json, rows.csv, rows.parquet.")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Rows to print.")] = 12,
    verify: Annotated[
        int | None,
        typer.Option("--verify", metavar="N", min=1, help="Then compile the first N rows, as verify does; with --out."),
    ] = None,
    chips_file: ChipsFile = None,
    figures: Figures = None,
    price: Prices = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score every layout, batch, chunk and precision by arithmetic; print the best.

    Maths, memory bandwidth, links (with wrap-around and hops), network between slices, and memory are counted; with
    --verify, or by `distaff sweep verify` later, the compiler looks at the best ones. Times are low / best / high
    estimates.

    \b
    Examples:
      distaff sweep plan -m llama-3.1-8b --hw v5e:4x4
      distaff sweep plan -m llama-3.1-70b --hw v6e:2x4,v5e:4x4 --slo-tpot 40ms --objective cost --out run
      distaff sweep plan -m llama-3.1-70b --hw v5e:4x4 --phase decode --out run --verify 12
      distaff sweep plan -m qwen3-30b-a3b --hw v6e:2x4 --batch 1:512 --weights bf16,int8 --kv bf16,int8
      distaff sweep plan -m llama:layers=32,embed=4096,mlp=14336,heads=32,kv_heads=8,vocab=128256 --hw h100:8

    \b
    --json prints one object: asked, summary, rows (the best first; see docs/sweep.md) and pairs (prefill and
    decode on slices of their own).
    """
    with reporting(debug):
        if verify is not None and out is None:
            raise UsageError("--verify writes what it finds into the sweep's folder: name one with --out")
        prepare_devices()
        from ..sharding.sweep.calibration import read_calibration
        from ..sharding.sweep.efficiency import DEFAULT
        from ..sharding.sweep.models import model_config
        from ..sharding.sweep.request import SweepRequest, Targets, Workload, parse_range
        from ..sharding.sweep.slices import parse_slice
        from ..sharding.sweep.store import load, save
        from ..sharding.sweep.sweep import plan as run

        table = chip_table(chips_file, figures, price)
        extra: dict[str, Any] = {} if axes is None else {"axes": tuple(axes.split(","))}
        request = SweepRequest(
            model=model,
            config=model_config(model, offline=offline),
            slices=tuple(parse_slice(name, table) for name in hw.split(",")),
            workload=Workload.of(isl, osl) if trace is None else Workload.read(trace),
            phase=phase,
            batches=parse_range("--batch", batch),
            chunks=parse_range("--chunk", chunk),
            weights=tuple(weights.split(",")),
            activations=tuple(activations.split(",")),
            kv=tuple(kv.split(",")),
            targets=Targets(parse_time("--slo-ttft", slo_ttft), parse_time("--slo-tpot", slo_tpot)),
            objective=objective,
            efficiencies=DEFAULT if calibration is None else read_calibration(calibration),
            **extra,
        )
        found = run(request)
        if out is not None:
            written = save(found, out)
            sys.stderr.write(f"Wrote {', '.join(map(str, written))}\n")
        if not json:
            print_sweep(found, top=top)
        if verify is not None and out is not None:
            from .sweep_verify import print_verified, verified

            looked_at = verified(out, top=verify, phases=None, jobs=1, timeout=300, cache=None, offline=offline)
            found = load(out)
            if not json:
                print_verified(looked_at)
        if json:
            print_json({"asked": found.asked, "summary": found.summary, "rows": found.rows, "pairs": found.pairs})


@app.command("verify")
def verify(
    folder: Folder,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Rows to compile, from the first on.")] = 12,
    phase: Annotated[
        Literal["decode", "prefill", "both"] | None,
        typer.Option("--phase", help="Which steps. [default: those of the sweep]"),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Compilers at once; each takes a core.")] = 1,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Most time for each step's compilation.")
    ] = 300.0,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where answers are kept. [default: Distaff's cache]")
    ] = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Have the compiler of the chips look at the best rows: memory, what is sent, FLOPs and cycles.

    The chips need not be there (extras `tpu`, `aot-cuda`). Rows that the compiler refuses go to the end, with
    the reason. Answers are kept by content: a run that was stopped goes on, and a second one is done in seconds.
    For GPUs there are memory and what is sent; their compiler has no cycles.

    \b
    Examples:
      distaff sweep verify run --top 12
      distaff sweep verify run --top 40 --phase decode --jobs 2

    \b
    --json prints one object: rows (those compiled; compiled has, for decode and prefill, arguments_bytes,
    temporary_bytes, peak_bytes, sends_as_predicted, sends, flops, cycles, estimate_ms, ... or refused), compiled
    and cached (how many programs: a step's, and the drawing of its tokens), seconds.
    """
    with reporting(debug):
        prepare_devices()
        from .sweep_verify import print_verified, verified

        chosen = ("decode", "prefill") if phase == "both" else None if phase is None else (phase,)
        found = verified(folder, top=top, phases=chosen, jobs=jobs, timeout=timeout, cache=cache, offline=offline)
        if json:
            print_json(found)
        else:
            print_verified(found)


for _name, _command in (("explain", explain), ("diff", diff), ("emit", emit), ("report", report)):
    app.command(_name)(_command)


@app.command("calibrate")
def calibrate(
    points: Annotated[
        Path | None,
        typer.Option("--points", metavar="FILE", help="YAML: a list of measured steps (docs/sweep.md has the fields)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="In place of --points: run it here, as run does.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", metavar="N", min=1, help="With --model, of the CPU. [default: 8]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="For plan --calibration. [default: stdout]")
    ] = None,
    chips_file: ChipsFile = None,
    figures: Figures = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit what chips reach of their nominal rates to measured steps, and say how far off it is.

    Each point is predicted by a fit to all the others; the errors of these are what is reported, and they set the
    bounds low and high. With --model the devices that are here are measured: what is written has them as a chip
    named here.

    \b
    Examples:
      distaff sweep calibrate --points measured.yaml -o calibration.yaml
      distaff sweep plan -m llama-3.1-8b --hw v5e:4x4 --calibration calibration.yaml
      distaff sweep calibrate -m random:config.json --devices 8 -o here.yaml
      distaff sweep plan -m config.json --hw here:8 --chips here.yaml --calibration here.yaml

    \b
    --json prints one object: best, mean_error, worst_error, points (name, ms, fitted_ms, left_out_ms, error).
    """
    with reporting(debug):
        if (points is None) == (model is None):
            raise UsageError("calibrate fits to --points FILE, or to what --model takes on the devices that are here")
        if points is not None and devices is not None:
            raise UsageError("--devices says where --model runs; --points were measured elsewhere: drop one of them")
        if model is not None and (chips_file or figures):
            raise UsageError("--model measures the devices that are here: drop --chips and --set")
        devices = None if model is None else devices or 8
        prepare_devices(devices)
        from ..sharding.sweep.calibrate import calibrate as fit
        from ..sharding.sweep.calibration import calibration_yaml
        from ..sharding.sweep.efficiency import DEFAULT
        from .sweep_points import calibration_object, print_calibration, read_points

        chip = None
        if points is not None:
            table, origin = chip_table(chips_file, figures, None), points.name
            found = fit(read_points(points, table, offline=offline), hop_seconds=DEFAULT.best.hop_seconds)
        else:
            from .sweep_run import run_layouts

            assert model is not None and devices is not None
            ran = run_layouts(
                model, devices=devices, batch=8, isl=32, osl=24, rounds=5, most=16, presets=None, offline=offline
            )
            origin, chip = "devices that were here", ran.request.slices[0].chip
            found = fit(ran.points, hop_seconds=ran.request.efficiencies.best.hop_seconds)
        about = calibration_object(found)
        text = calibration_yaml(found.efficiencies(origin), about=about, chip=chip)
        if output is not None:
            output.write_text(text, "utf-8")
        if json:
            print_json(about)
        else:
            print_calibration(found)
            if output is None:
                typer.echo("\n" + text, nl=False)


@app.command("run")
def run(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As for generate; random:CONFIG.json has no weights to download.")
    ],
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1, help="Of the CPU: virtual ones.")] = 8,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Requests at once.")] = 8,
    isl: Annotated[int, typer.Option("--isl", metavar="N", min=1, help="Tokens of a prompt.")] = 32,
    osl: Annotated[int, typer.Option("--osl", metavar="N", min=2, help="Tokens of an answer.")] = 24,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Times of each layout, in turn.")] = 5,
    most: Annotated[int, typer.Option("--most", metavar="N", min=1, help="Layouts to run.")] = 16,
    presets: Annotated[
        str | None, typer.Option("--presets", metavar="P,...", help="Of these presets alone. [default: all]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to keep it, as plan does.")] = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure decode steps of layouts on the devices that are here, beside what is predicted of them.

    The prediction knows the devices by microbenchmarks alone: a product, reading memory, a small and a large sum.
    Each layout runs in an engine of its own; they take turns, and medians are compared.

    \b
    Examples:
      distaff sweep run -m random:config.json --devices 8
      distaff sweep run -m smollm2-135m-instruct --devices 4 --presets tensor,replica

    \b
    --json prints one object: rows (as those of plan, with measured_ms) and summary (kendall_tau over the pairs that
    differ by more than 15 %, pairs, regret, microbenchmarks).
    """
    with reporting(debug):
        prepare_devices(devices)
        from .sweep_run import print_run, run_layouts, told_of

        ran = run_layouts(
            model, devices=devices, batch=batch, isl=isl, osl=osl, rounds=rounds, most=most,
            presets=None if presets is None else presets.split(","), offline=offline,
        )  # fmt: skip
        found = told_of(ran, out)
        if json:
            print_json(found)
        else:
            print_run(found)
