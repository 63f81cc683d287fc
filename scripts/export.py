"""`distaff export`: a model's step, as a compiler gets it and as it leaves it, for a chip that is not attached."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import InvalidParameterError, UsageError
from .options import Debug, Dtype, Json, Offline
from .output import print_json, size_text
from .reporting import reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..backends.aot import Case
    from ..backends.base import Backend
    from ..backends.compiler.report import CompileReport

_MOST_CONTEXT = 4096
"""Where a model allows more, and nobody asks for it."""


class Phase(StrEnum):
    """What the rows of a step do."""

    DECODE = "decode"
    PREFILL = "prefill"


def export(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="As for generate; random:NAME takes a shipped configuration's sizes."),
    ],
    topology: Annotated[
        str,
        typer.Option("--topology", help="The chip, and how many along each axis: v6e:2x2, v7x:2x2x1, h100:1."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; it is made.")] = Path("export"),
    phase: Annotated[
        list[Phase] | None, typer.Option("--phase", help="Only this step; can be given twice. [default: both]")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Rows of the decode step.")] = 8,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="Tokens of the prefill step, all of one prompt.")
    ] = 512,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", metavar="N", help="Positions that each row may have. [default: the model's, to 4096]"
        ),
    ] = None,
    page_size: Annotated[
        int | None,
        typer.Option("--page-size", metavar="N", help="Positions in a page of the KV cache. [default: the backend's]"),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What weights, cache and arithmetic are held in.")
    ] = Dtype.BFLOAT16,
    backend: Annotated[
        str, typer.Option("--backend", help="Whose kernels: auto (the chip's own), or reference.")
    ] = "auto",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Most time for each step's compilation.")
    ] = 600.0,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a model's steps for a chip that is not attached, and write them down.

    For each of the steps, decode and prefill, on one device of the topology: NAME.stablehlo.mlir is what
    goes into the compiler, NAME.hlo.txt the optimised program that comes out, NAME.fusions.txt which
    operations it fused, NAME.json its memory, FLOPs, bytes, cycles, collectives and kernels.
    No weights are read: of a model, only its configuration counts.

    \b
    Examples:
      distaff export -m smollm2-135m-instruct --topology v6e:2x2
      distaff export -m random:llama-3.1-8b --topology tpu7x:2x2x1 --phase decode --batch 64
      distaff export -m ./my-model --topology h100:1 --backend reference --out h100 --json
    """
    with reporting(debug):
        for name, value in (
            ("--batch", batch),
            ("--tokens", tokens),
            ("--context", context),
            ("--page-size", page_size),
        ):
            if value is not None and value < 1:
                raise InvalidParameterError(name, value, "a whole number from 1")
        if context is not None and context < tokens and (phase is None or Phase.PREFILL in phase):
            raise UsageError(f"--context {context} is shorter than the {tokens} --tokens of the prefill step")
        prepare_devices()
        from ..models.checkpoints import resolve_model

        chip_backend(backend, topology)  # before anything is fetched or written
        reports: dict[str, CompileReport] = {}
        arguments = {"model": str(resolve_model(model, offline=offline or None)), "dtype": dtype.value}
        arguments |= {"backend": backend, "topology": topology, "page_size": page_size}
        arguments |= {"batch": batch, "tokens": tokens, "context": context}
        for step in dict.fromkeys(phase or Phase):
            reports[step.value] = _compile(step, arguments, topology, out, timeout)
            if not json:
                _print(step, reports[step.value], out)
        if json:
            files = sorted(str(path) for path in out.iterdir() if path.name.split(".")[0] in reports)
            print_json(
                {"model": model, "topology": topology, "files": files}
                | {"steps": {name: report.to_dict() for name, report in reports.items()}}
            )


def _compile(step: Phase, arguments: Mapping[str, Any], topology: str, out: Path, timeout: float) -> "CompileReport":
    from ..backends.aot import CompileJob, compile_report

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be made ({error.strerror}); name a folder to write to") from error
    stem = str(out / step.value)
    job = CompileJob(f"{__name__}:build", {**arguments, "phase": step.value}, topology, save_to=stem)
    sys.stderr.write(f"Compiling {step.value} for {topology}\n")
    report = compile_report(job, timeout=timeout)
    Path(f"{stem}.json").write_text(dumps(report.to_dict(), indent=1) + "\n")
    return report


def build(
    *,
    model: str,
    topology: str,
    phase: str,
    batch: int,
    tokens: int,
    context: int | None,
    page_size: int | None,
    dtype: str,
    backend: str,
) -> "Case":
    """The step that this command compiles, in the process that does it."""
    from ..backends.aot import Case
    from ..models.checkpoints import open_checkpoint
    from ..models.families import config_from_hf
    from .step_case import abstract_step

    checkpoint = open_checkpoint(model)
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    chosen = chip_backend(backend, topology)
    page = page_size or chosen.page_size
    chosen.check(config.cache_groups, dtype=dtype, kv_dtype=dtype, page_size=page)
    decode = phase == Phase.DECODE
    step, args = abstract_step(
        config,
        chosen,
        rows=batch if decode else 1,
        queries=1 if decode else tokens,
        context=context or max(tokens, min(config.max_positions, _MOST_CONTEXT)),
        page=page,
        dtype=dtype,
    )
    return Case(step, args, donate=(1, 2), compiler_options=chosen.compiler_options)


def chip_backend(name: str, topology: str) -> "Backend":
    """The backend that a step is traced with for a topology.

    Raises:
        UsageError: it is not one of that chip.
    """
    from ..backends.compiler.topologies import parse_topology
    from ..backends.reference import ReferenceBackend

    chip = parse_topology(topology).chip
    own = "tpu" if chip.platform == "tpu" else "gpu"
    if name == "reference":
        return ReferenceBackend()
    if name not in ("auto", own):
        raise UsageError(f"--backend {name}: the kernels for {topology} are those of auto, {own} or reference")
    if own == "gpu":
        from ..backends.gpu.backend import GpuBackend

        return GpuBackend(chip=chip.name)
    from ..backends.tpu.backend import TpuBackend

    return TpuBackend(generation=chip.name)


def _print(step: Phase, report: "CompileReport", out: Path) -> None:
    memory = report.memory
    lines = [
        f"{step.value} on one device of {report.topology} ({report.compiler}, {report.compile_seconds:.1f} s)",
        f"  memory       {size_text(memory.arguments)} arguments, {size_text(memory.temporaries)} temporaries, "
        f"{size_text(memory.outputs - memory.aliased)} outputs beside what is updated in place",
        f"  work         {report.flops / 1e9:.1f} GFLOP in matmuls, {size_text(report.hbm_bytes)} to and from HBM",
    ]
    if report.estimated_cycles is not None:
        lines.append(
            f"  XLA's part   {report.least_cycles} to {report.estimated_cycles} cycles, estimated: what sampling needs "
            "depends on the requests"
        )
    for kernel in report.kernels:
        lines.append(
            f"  kernel       {kernel.name} x{kernel.calls}: {kernel.bundles} bundles, "
            f"{kernel.spill_stores:.0f} spills, {size_text(kernel.vmem_bytes or 0)} VMEM"
        )
    for kernel in report.gpu_kernels:
        lines.append(f"  kernel       {kernel.name} x{kernel.calls}")
    for collective in report.collectives:
        lines.append(f"  collective   {collective.op} x{collective.count}: {size_text(collective.num_bytes)}")
    lines.append(f"  written      {out / step.value}.{{stablehlo.mlir,hlo.txt,fusions.txt,json}}")
    typer.echo("\n".join(lines))
