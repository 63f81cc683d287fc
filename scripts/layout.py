"""`distaff layout`: where a model lies on several devices, what they send each other, and whether it fits."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import InvalidParameterError, UsageError
from .layout_tables import print_check, print_layout
from .options import Debug, Dtype, Json, KVDtype, Offline, Quantize, parse_size
from .output import print_json
from .reporting import FAILURE, reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..backends.compiler.report import CompileReport
    from ..backends.quantized import Rounding
    from ..models.checkpoints import Location
    from ..models.compress import HeldWeights
    from ..models.config import ModelConfig
    from ..sharding.check import Devices as Available
    from ..sharding.layout import Layout

app = typer.Typer(rich_markup_mode=None)

_HERE = 8
"""Devices of a preset without sizes, where nobody says how many there are."""

Text = Annotated[str, typer.Argument(metavar="LAYOUT", help="Such as tensor=4, a preset, a .yaml file, or auto.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="As for generate; only its configuration is read. random:NAME will do.")
]
Devices = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", min=1, help="How many there are. [default: those of the layout, or 8]"),
]
Held = Annotated[Dtype, typer.Option("--dtype", help="What weights, cache and activations are held in.")]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows of a decode step, of each replica.")]
Tokens = Annotated[
    int, typer.Option("--tokens", metavar="N", min=1, help="Tokens of a prefill step, all of one prompt.")
]


@app.callback()
def layout() -> None:
    """Layouts of a model over devices: what they hold and send, and whether they fit."""


@app.command("show")
def show(
    text: Text,
    model: Model,
    devices: Devices = None,
    dtype: Held = Dtype.BFLOAT16,
    batch: Batch = 8,
    tokens: Tokens = 512,
    quantize: Quantize = None,
    kv_dtype: KVDtype = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the mesh, where each tensor lies, bytes on each device, and what a step sends.

    All of it is arithmetic; nothing is compiled or loaded.

    \b
    Examples:
      distaff layout show tensor=8 -m random:llama-3.1-8b
      distaff layout show tensor-2d:tensor=8,tensor2=4 -m random:llama-3.1-70b --batch 64
      distaff layout show expert --devices 8 -m random:qwen3-30b-a3b --json
      distaff layout show tensor=4 -m random:llama-3.1-8b --quantize int8 --kv-dtype int8

    \b
    --json prints one object:
      layout, devices, mesh, rules, prefill, tensors (path, shape, axes, spec, part, held, bytes), weights,
      kv_copies, padding, cache_token (bytes on each device), staging (most bytes of host memory that
      loading takes beside the weights), stage_layers (how many each stage of a
      pipeline computes), decode_bubble and prefill_bubble (the part of a step for which a stage
      waits, on the average), decode_sends and prefill_sends (what, op,
      axes, count, bytes of each, link_bytes: what a device sends in all of them; when: with which
      parameters of the rows, empty if always)
    """
    with reporting(debug):
        prepare_devices()
        from ..serving.llm import cache_dtype
        from ..sharding.check import Devices as Available
        from ..sharding.check import check_layout, lying_whole
        from ..sharding.report import layout_report

        config, form = _config(model, offline, quantize)
        held = cache_dtype(kv_dtype, dtype.value)
        laid = _parse(text, config, devices, dtype.value, roundings=form.roundings)
        if form.made is None:
            form = form.under(lying_whole(laid, config, dtype.value, form.roundings))
        for remark in form.remarks:
            sys.stderr.write(f"warning: {remark}\n")
        roundings = form.roundings
        available = Available(devices or laid.num_devices)
        check_layout(laid, config, available, dtype=dtype.value, roundings=roundings)
        _print_remarks(config, laid, available, dtype.value)
        report = layout_report(
            config, laid, dtype.value, batch=batch, tokens=tokens, kv_dtype=held, roundings=roundings
        )  # fmt: skip
        if json:
            print_json(report)
        else:
            print_layout(laid, report)


@app.command("check")
def check(
    text: Text,
    model: Model,
    devices: Devices = None,
    topology: Annotated[
        str | None,
        typer.Option("--topology", help="Chips to fit and to compile for, such as v5e:4x4; gives devices and memory."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Of each device, such as 16GiB. [default: the chip's]"),
    ] = None,
    dtype: Held = Dtype.BFLOAT16,
    batch: Batch = 8,
    tokens: Tokens = 512,
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=1, help="Positions that each row may have.")
    ] = 2048,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Most time for each step's compilation.")
    ] = 600.0,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say whether a layout fits a model and the devices; if not, why, and what would.

    With --topology the decode and the prefill step are compiled by the compiler of those chips, which need
    not be attached: what they send is compared with what was predicted, and memory is what the compiler took.
    Exits with 2 if the layout does not fit, with 1 if the compiler sends something else.

    \b
    Examples:
      distaff layout check tensor=4 -m random:llama-3.1-70b --devices 4 --memory 32GiB
      distaff layout check tensor=8 -m random:llama-3.1-8b --topology v6e:2x4
      distaff layout check auto -m random:llama-3.1-8b --topology v5e:4x4 --json

    \b
    --json prints one object:
      layout, devices, memory (bytes of each device, or null), weights, kv_copies and padding of them,
      cache_token (bytes on each), tokens (positions that the rest holds, or null), unused (devices that the
      layout leaves), compiled (null, or for decode and prefill: sends, as predicted and as compiled, agrees,
      arguments, temporaries, seconds)
    """
    with reporting(debug):
        if devices is not None and topology is not None:
            raise UsageError("--devices and --topology exclude each other: a topology has its number of devices")
        if tokens > context:
            raise InvalidParameterError("--context", context, f"at least the {tokens} --tokens of a prefill step")
        prepare_devices()
        from ..sharding.check import Devices as Available
        from ..sharding.check import check_layout
        from ..sharding.report import fit_report

        config, _ = _config(model, offline)
        held = None if memory is None else parse_size("--memory", memory)
        if topology is not None:
            devices, chip_memory = _described(topology)
            held = held or chip_memory
        laid = _parse(text, config, devices, dtype.value, held)
        available = Available(devices or laid.num_devices, held)
        check_layout(laid, config, available, dtype=dtype.value)
        report: dict[str, Any] = fit_report(config, laid, available, dtype.value)
        _print_remarks(config, laid, available, dtype.value)
        if topology is not None:
            # The name of a layout from a file does not tell its table.
            written = str(Path(text).resolve()) if laid.preset == "custom" else str(laid)
            arguments = {"model": str(_resolve(model, offline)), "layout": written, "devices": devices}
            arguments |= {"topology": topology, "dtype": dtype.value, "context": context}
            shapes = {"decode": (batch, 1), "prefill": (1, tokens)}
            report["compiled"] = {
                name: _compared(config, laid, {**arguments, "rows": rows, "queries": queries}, timeout)
                for name, (rows, queries) in shapes.items()
            }
        if json:
            print_json(report)
        else:
            print_check(report)
        if not all(step["agrees"] for step in (report["compiled"] or {}).values()):
            raise typer.Exit(FAILURE)


@app.command("presets")
def presets(json: Json = False, debug: Debug = False) -> None:
    """List the presets: the mesh axes of each, what it splits, and when to use it.

    \b
    Examples:
      distaff layout presets
      distaff layout presets --json
    """
    with reporting(debug):
        from ..sharding.presets import PRESETS

        if json:
            rows = [
                {"name": name, "axes": ["data", *preset.axes], "rules": preset.rules.as_dict(), "about": preset.about,
                 "prefill": preset.prefill.as_dict(), "use": preset.use}
                for name, preset in PRESETS.items()
            ]  # fmt: skip
            print_json({"presets": rows})
            return
        for name, preset in PRESETS.items():
            typer.echo(
                f"{name} ({', '.join(('data', *preset.axes))})\n  splits  {preset.about}\n  when    {preset.use}"
            )


def _config(model: str, offline: bool, quantize: str | None = None) -> "tuple[ModelConfig, HeldWeights]":
    """A model's configuration as it is held, and how its weights are."""
    from ..models.checkpoints import open_checkpoint
    from ..models.compress import held_weights
    from ..models.families import config_from_hf

    checkpoint = open_checkpoint(_resolve(model, offline))
    form = held_weights(quantize, checkpoint, config_from_hf(checkpoint.hf_config, source=str(checkpoint.path)))
    return form.config, form


def _resolve(model: str, offline: bool) -> "Location":
    from ..models.checkpoints import resolve_model

    return resolve_model(model, offline=offline or None)


def _parse(
    text: str,
    config: "ModelConfig",
    devices: int | None,
    dtype: str,
    memory: int | None = None,
    roundings: "Mapping[str, Rounding] | None" = None,
) -> "Layout":
    from ..sharding.check import Devices as Available
    from ..sharding.check import choose_layout
    from ..sharding.parsing import parse_layout

    if text == "auto":
        return choose_layout(config, Available(devices or _HERE, memory), dtype=dtype, roundings=roundings or {})
    return parse_layout(text, num_devices=devices or _HERE)


def _print_remarks(config: "ModelConfig", laid: "Layout", available: "Available", dtype: str) -> None:
    from ..sharding.remarks import remarks_on

    for remark in remarks_on(laid, config, available, dtype=dtype):
        sys.stderr.write(f"warning: {remark}\n")


def _described(topology: str) -> tuple[int, int]:
    """Devices of a topology, and the bytes of each."""
    from ..backends.compiler.topologies import parse_topology

    described = parse_topology(topology)
    if described.chip.platform != "tpu":
        raise UsageError(f"--topology {topology}: layouts are compiled for TPUs, such as v5e:4x4")
    return described.num_chips * described.chip.devices_per_chip, described.chip.device_hbm_bytes


def _compared(config: "ModelConfig", laid: "Layout", arguments: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Compiles a step, and compares what it sends with the prediction."""
    from ..backends.aot import CompileJob, compile_report
    from ..backends.compiler.topologies import parse_topology
    from ..sharding.collectives import StepShape, predict
    from ..sharding.report import comparison

    shape = StepShape(arguments["rows"], arguments["queries"])
    chips = parse_topology(arguments["topology"]).shape
    sys.stderr.write(f"Compiling {laid} for {arguments['topology']}\n")
    job = CompileJob(f"{__package__}.layout_case:build", arguments, arguments["topology"])
    compiled: CompileReport = compile_report(job, timeout=timeout, kernels=".*(attention|rounded).*")
    return {
        **comparison(laid, predict(config, laid, shape, arguments["dtype"], chips=chips), compiled.collectives),
        "arguments": compiled.memory.arguments,
        "temporaries": compiled.memory.temporaries,
        "seconds": compiled.compile_seconds,
    }
