"""`distaff sweep`: which layout is best for a model, chips and a workload."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..backends.errors import UsageError
from .hardware import ChipsFile, Figures, Prices, chip_table
from .options import Debug, Json, Offline
from .output import print_json
from .reporting import reporting
from .startup import prepare_devices
from .sweep_request import parse_time, request_of
from .sweep_tables import print_diff, print_explained, print_sweep

if TYPE_CHECKING:
    from ..sharding.layout import Layout
    from ..sharding.sweep.request import SweepRequest
    from ..sharding.sweep.slices import Slice

app = typer.Typer(rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Of a sweep, as plan --out made it.")]
RowId = Annotated[str, typer.Argument(metavar="ID", help="Of a row, or its first characters; best is the first row.")]


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
    chips_file: ChipsFile = None,
    figures: Figures = None,
    price: Prices = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score every layout, batch, chunk and precision by arithmetic; print the best.

    Nothing is compiled: maths, memory bandwidth, links (with wrap-around and hops), network between slices, and
    memory. `distaff sweep verify` has the compiler look at the best ones. Times are low / best / high estimates.

    \b
    Examples:
      distaff sweep plan -m llama-3.1-8b --hw v5e:4x4
      distaff sweep plan -m llama-3.1-70b --hw v6e:2x4,v5e:4x4 --slo-tpot 40ms --objective cost --out run
      distaff sweep plan -m qwen3-30b-a3b --hw v6e:2x4 --batch 1:512 --weights bf16,int8 --kv bf16,int8
      distaff sweep plan -m llama:layers=32,embed=4096,mlp=14336,heads=32,kv_heads=8,vocab=128256 --hw h100:8

    \b
    --json prints one object: asked, summary, rows (the best first; see docs/sweep.md) and pairs (prefill and
    decode on slices of their own).
    """
    with reporting(debug):
        prepare_devices()
        from ..sharding.sweep.calibration import read_calibration
        from ..sharding.sweep.efficiency import DEFAULT
        from ..sharding.sweep.models import model_config
        from ..sharding.sweep.request import SweepRequest, Targets, Workload, parse_range
        from ..sharding.sweep.slices import parse_slice
        from ..sharding.sweep.store import save
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
        if json:
            print_json({"asked": found.asked, "summary": found.summary, "rows": found.rows, "pairs": found.pairs})
        else:
            print_sweep(found, top=top)


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
    chips_file: ChipsFile = None,
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
    and cached (how many steps), seconds.
    """
    with reporting(debug):
        prepare_devices()
        from .sweep_verify import print_verified, verified

        chosen = ("decode", "prefill") if phase == "both" else None if phase is None else (phase,)
        table = chip_table(chips_file, None, None)
        found = verified(
            folder, table, top=top, phases=chosen, jobs=jobs, timeout=timeout, cache=cache, offline=offline
        )
        if json:
            print_json(found)
        else:
            print_verified(found)


@app.command("explain")
def explain(
    folder: Folder,
    row_id: RowId,
    chips_file: ChipsFile = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a row's time goes to, what binds it, and what changes would bring.

    \b
    Examples:
      distaff sweep explain run best
      distaff sweep explain run 1a2b --json

    \b
    --json prints one object: row, decode_shares and prefill_shares (fractions of a step), changes (what would be
    with one thing different), advice.
    """
    with reporting(debug):
        prepare_devices()
        from ..sharding.sweep.explain import advice, counterfactuals, shares

        request, row, layout, on = _found(folder, row_id, chips_file, offline)
        changes = counterfactuals(request, row, layout, on)
        explained = {
            "row": row,
            "decode_shares": shares(row["decode_ms"]),
            "prefill_shares": shares(row["prefill_ms"]),
            "changes": changes,
            "advice": advice(row, changes, request.phase),
        }
        if json:
            print_json(explained)
        else:
            print_explained(explained)


@app.command("diff")
def diff(folder: Folder, first: RowId, second: RowId, json: Json = False, debug: Debug = False) -> None:
    """Show two rows beside each other, with ratios.

    \b
    Examples:
      distaff sweep diff run 1a2b 3c4d
    """
    with reporting(debug):
        from ..sharding.sweep.store import flat, load

        found = load(folder)
        rows = [flat(found.row(each)) for each in (first, second)]
        if json:
            print_json({"first": rows[0], "second": rows[1]})
        else:
            print_diff(rows[0], rows[1])


@app.command("emit")
def emit(
    folder: Folder,
    row_id: Annotated[
        str, typer.Argument(metavar="ID", help="Of a row; best, the first; or pair, the best pair for both phases.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .yaml file. [default: stdout]")
    ] = None,
    phase: Annotated[
        Literal["prefill", "decode"] | None, typer.Option("--phase", help="Of a pair: whose layout.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a row's layout as the YAML that --layout takes.

    \b
    Examples:
      distaff sweep emit run best -o layout.yaml
      distaff sweep emit run pair --phase prefill -o prefill.yaml
      distaff generate -m smollm2-135m-instruct --layout layout.yaml --devices 8 --prompt Hello
    """
    with reporting(debug):
        prepare_devices()
        import yaml

        from ..sharding.parsing import layout_yaml
        from ..sharding.sweep.store import load

        found = load(folder)
        if (row_id == "pair") != (phase is not None):
            raise UsageError(
                "--phase says whose layout of a pair is meant: distaff sweep emit DIR pair --phase prefill"
            )
        if phase is not None:
            if not found.pairs:
                raise UsageError(f"{folder} has no pairs: plan with --phase both, on chips whose network is known")
            pair = found.pairs[0]
            about = f"# {phase} on {pair[f'{phase}_hw']}, of a pair"
            text = yaml.safe_dump(pair[f"{phase}_table"], sort_keys=False)
        else:
            row = found.row(row_id)
            about = (
                f"# {row['hw']}, batch {row['batch']}, chunk {row['chunk']}, {row['weights']} weights; row {row['id']}"
            )
            text = layout_yaml(_layout(row))
        text = f"{about}\n{text}"
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, "utf-8")


@app.command("report")
def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="[default: report.html in the folder]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a sweep as one HTML file: the Pareto plot, details on hover, filters, layouts drawn on their devices.

    \b
    Examples:
      distaff sweep report run
      distaff sweep report run -o report.html
    """
    with reporting(debug):
        from ..sharding.sweep.page import page
        from ..sharding.sweep.store import load

        path = output or folder / "report.html"
        path.write_text(page(load(folder)), "utf-8")
        typer.echo(str(path))


@app.command("calibrate")
def calibrate(
    points: Annotated[
        Path,
        typer.Option("--points", metavar="FILE", help="YAML: a list of measured steps (docs/sweep.md has the fields)."),
    ],
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
    bounds low and high.

    \b
    Examples:
      distaff sweep calibrate --points measured.yaml -o calibration.yaml
      distaff sweep plan -m llama-3.1-8b --hw v5e:4x4 --calibration calibration.yaml

    \b
    --json prints one object: best, mean_error, worst_error, points (name, ms, fitted_ms, left_out_ms, error).
    """
    with reporting(debug):
        prepare_devices()
        from ..sharding.sweep.calibrate import calibrate as fit
        from ..sharding.sweep.calibration import calibration_yaml
        from ..sharding.sweep.efficiency import DEFAULT
        from .sweep_points import calibration_object, print_calibration, read_points

        table = chip_table(chips_file, figures, None)
        found = fit(read_points(points, table, offline=offline), hop_seconds=DEFAULT.best.hop_seconds)
        about = calibration_object(found)
        text = calibration_yaml(found.efficiencies(points.name), about=about)
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
        from .sweep_run import print_run, run_layouts

        found = run_layouts(
            model, devices=devices, batch=batch, isl=isl, osl=osl, rounds=rounds, most=most,
            presets=None if presets is None else presets.split(","), out=out, offline=offline,
        )  # fmt: skip
        if json:
            print_json(found)
        else:
            print_run(found)


def _layout(row: dict[str, Any]) -> "Layout":
    from ..sharding.presets import preset

    return preset(row["preset"], row["mesh"])


def _found(
    folder: Path, row_id: str, chips_file: Path | None, offline: bool
) -> "tuple[SweepRequest, dict[str, Any], Layout, Slice]":
    """A stored row with what it was about."""
    from ..sharding.sweep.store import load

    found = load(folder)
    row = found.row(row_id)
    request = request_of(found, chip_table(chips_file, None, None), offline=offline)
    (on,) = (each for each in request.slices if each.name == row["hw"])
    return request, row, _layout(row), on
