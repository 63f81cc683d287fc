"""`distaff bench kernels`: what the compiler makes of every kernel, beside JAX's own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import UsageError
from .options import Debug, Json
from .output import print_json
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .startup import has_tpu, prepare_devices

if TYPE_CHECKING:
    from ..backends.compiler.errors import CompileError
    from ..backends.compiler.report import CompileReport
    from .kernel_rows import KernelRow
    from .report_cache import ReportCache


_KERNELS = ".*(attention|splash|prefill|flash|grouped|rounded).*"
"""What the names of kernels look like, ours and JAX's."""


def bench_kernels(
    kernel: Annotated[
        str | None, typer.Option("--kernel", help="Only kernels with this in their names, such as decode.")
    ] = None,
    generation: Annotated[
        str | None, typer.Option("--generation", help="Only this one: v4, v5e, v5p, v6e or tpu7x.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", help='Only shapes with these words, such as "page16 fp8".')
    ] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="JAX's own kernels too.")] = True,
    tune: Annotated[
        bool, typer.Option("--tune", help="Look for the best block sizes of ours, and write them to the table.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Record the cycles of ours as budgets that a test holds them to.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", help="With --accept: why budgets grow, where they do.", metavar="TEXT")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compile again what was compiled before.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile every kernel for every TPU generation, ours beside JAX's, and report what the schedules cost.

    Nothing of it needs a TPU: the figures are static, the compiler's own schedule times its trip counts. Where a TPU is
    attached, the kernels of its generation are timed too. Reports are kept; what has not changed is not compiled again.

    \b
    Examples:
      distaff bench kernels --generation v6e --kernel decode
      distaff bench kernels --shape "ctx4096 page16" --json
      distaff bench kernels --tune --kernel decode --generation v6e

    \b
    --json prints one object:
      compiler, rows (kernel, generation, shape, arguments, figures, bar, met, missed, error of
      each; met is null where nothing is asked), met, missed (counts of rows)
    figures: compute_us, hbm_us, ratio, mxu_ratio, cycles, mxu_busy, bundles, spills,
      hot_loop_spills, vmem_bytes, vmem_share, compile_s, xla_us; of a step also step_ratio,
      sampled_ratio, greedy_xla_us, limit_us, temporary_bytes, cache_copies; on a TPU measured_us
    """
    with reporting(debug):
        prepare_devices()
        from ..models.checkpoints import cache_dir
        from .kernel_rows import TOPOLOGIES, kernel_rows
        from .report_cache import ReportCache

        if generation is not None and generation not in TOPOLOGIES:
            raise UsageError(f"--generation is {generation!r}, expected one of {', '.join(TOPOLOGIES)}")
        chosen = [row for row in kernel_rows() if row.matches(kernel, generation, shape) and (peers or row.ours)]
        if not chosen:
            raise UsageError("no row is left by --kernel, --generation and --shape; leave one of them out")
        if tune:
            from .kernel_tuner import tune_rows

            for line in tune_rows([row for row in chosen if row.ours]):
                typer.echo(line)
            return
        if accept:
            chosen = [row for row in chosen if row.ours]
        rows = report_rows(chosen, ReportCache(cache_dir() / "kernels"), fresh=fresh)
        if accept:
            typer.echo(f"{_accept(rows, reason)} budgets changed")
            return
        if json:
            asked = [row["met"] for row in rows if row["met"] is not None]
            counts = {"met": sum(asked), "missed": len(asked) - sum(asked)}
            print_json({"compiler": _compiler(), "rows": rows, **counts})
            return
        from .kernel_tables import print_rows

        print_rows(rows, _compiler())


def report_rows(chosen: "Sequence[KernelRow]", cache: "ReportCache", *, fresh: bool = False) -> list[dict[str, Any]]:
    """Objects of rows, from the cache or the compiler. A program that does not compile has its error in the row.

    Raises:
        DistaffError: the compiler is not installed.
    """
    from ..backends.compiler.errors import CompileError
    from .kernel_rows import figures, row_object

    found: dict[int, CompileReport | CompileError] = {}
    for number, row in enumerate(chosen):
        kept = None if fresh else cache.get(row)
        if kept is not None:
            found[number] = kept
    missing = [number for number in range(len(chosen)) if number not in found]
    with ProgressDisplay("kernels") as display:
        answers = compile_rows([chosen[number] for number in missing]) if missing else iter(())
        for done, (number, answer) in enumerate(zip(missing, answers, strict=True)):
            display(Step("compile", done + 1, len(missing)))
            found[number] = answer
            if not isinstance(answer, CompileError):
                cache.put(chosen[number], answer)
    timed = has_tpu()
    objects: list[dict[str, Any]] = []
    for number, row in enumerate(chosen):
        answer = found[number]
        if isinstance(answer, CompileError):
            objects.append(row_object(row, None, str(answer)))
            continue
        numbers = figures(row, answer)
        if timed:
            from .kernel_timing import measured_us

            numbers["measured_us"] = measured_us(row)
        objects.append(row_object(row, numbers))
    return objects


def compile_rows(rows: "Sequence[KernelRow]") -> "Iterator[CompileReport | CompileError]":
    """What the compiler says to each, in their order."""
    from ..backends.aot import CompileJob, compile_reports

    jobs = [CompileJob(row.builder, row.arguments, row.topology) for row in rows]
    return (answer for _, answer in compile_reports(jobs, kernels=_KERNELS))


def _accept(rows: Sequence[Mapping[str, Any]], reason: str | None) -> int:
    """Records budgets of all generations, and returns how many changed."""
    from ..backends.compiler.libtpu import libtpu_version
    from ..backends.kernel_budgets import accept

    cycles: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["error"] is None:
            cycles.setdefault(row["generation"], {})[row["kernel"], row["shape"]] = row["figures"]["cycles"]
    return sum(accept(generation, libtpu_version(), found, reason) for generation, found in cycles.items())


def _compiler() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"libtpu {version('libtpu')}"
    except PackageNotFoundError:
        return "no compiler"
