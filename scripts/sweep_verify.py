"""`distaff sweep verify`: the compilers' work, and what is told about it."""

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import typer

from ..backends.compiler.errors import CompilerNotFoundError
from ..models.checkpoints.registry import cache_dir
from ..sharding.presets import preset
from ..sharding.sweep.checked import compiled_row, ordered
from ..sharding.sweep.compile_cache import CompileCache
from ..sharding.sweep.store import Sweep, load, save
from ..sharding.sweep.verify import UNAVAILABLE, Answer, Builders, Check, Task, Verified, checks_of, run_tasks
from .output import size_text
from .sweep_request import request_of

BUILDERS = Builders(f"{__package__}.sweep_case:step", f"{__package__}.sweep_case:drawing")


def verified(
    folder: Path,
    *,
    top: int,
    phases: Sequence[str] | None,
    jobs: int,
    timeout: float,
    cache: Path | None,
    offline: bool,
) -> dict[str, Any]:
    """Compiles the first rows of a sweep and writes what was found into its folder.

    Raises:
        CompilerNotFoundError: there is none for any of the rows.
    """
    began = time.perf_counter()
    sweep = load(folder)
    request = request_of(sweep, offline=offline)
    phases = phases or (("decode", "prefill") if request.phase == "both" else (request.phase,))
    kept = CompileCache(cache or cache_dir() / "sweep")
    slices = {on.name: on for on in request.slices}
    # By the rank that arithmetic gave them, so that the same command looks at the same rows again.
    planned = sorted(sweep.rows, key=lambda row: row["rank"])
    chosen = [row for row in planned if row["fits"] or row["evidence"] == "refused"][:top]
    layouts = {row["id"]: preset(row["preset"], row["mesh"]) for row in chosen}
    checks: list[Check] = []
    skipped: dict[str, str] = {}
    for row in chosen:
        found = checks_of(request, row, layouts[row["id"]], slices[row["hw"]], builders=BUILDERS, phases=phases)
        if isinstance(found, str):
            skipped[row["id"]] = found
        else:
            checks += found
    answers = _answers(checks, kept, jobs=jobs, timeout=timeout)
    every = [Verified.of(check, answers) for check in checks]
    missing = [each.refused["message"] for each in every if each.refused and each.refused["kind"] == UNAVAILABLE]
    if every and len(missing) == len(every):
        raise CompilerNotFoundError(missing[0])
    made: dict[str, Any] = {}
    for row in chosen:
        own = [each for each in every if each.check.row == row["id"]]
        if own:
            made[row["id"]] = compiled_row(row, own, request, layouts[row["id"]], slices[row["hw"]])
        else:
            made[row["id"]] = {**row, "reason": skipped[row["id"]]}
    rows = [made.get(row["id"], row) for row in sweep.rows]
    rows = ordered(rows, request.objective, prefill=request.phase == "prefill")
    save(Sweep(sweep.asked, sweep.summary, rows, sweep.pairs), folder)
    return {
        "rows": [made[row["id"]] for row in chosen],
        "compiled": sum(not each.cached for each in answers.values()),
        "cached": sum(each.cached for each in answers.values()),
        "seconds": time.perf_counter() - began,
    }


def print_verified(found: Mapping[str, Any]) -> None:
    """What `distaff sweep verify` prints."""
    head = (
        "ID",
        "LAYOUT",
        "BATCH",
        "STEP",
        "ARGUMENTS",
        "TEMPORARIES",
        "SENDS",
        "GFLOP",
        "KCYCLES",
        "ESTIMATE",
        "BY ANALYTIC",
    )
    table: list[tuple[str, ...]] = []
    for row in found["rows"]:
        for phase, step in (row["compiled"] or {}).items():
            first = (row["id"], row["layout"], str(row["batch"]), phase)
            if "refused" in step:
                table.append((*first, f"refused: {step['refused']['message'][:90]}", *[""] * 6))
                continue
            estimate, ratio = step["estimate_ms"], step["estimate_by_analytic"]
            table.append(
                (
                    *first,
                    f"{size_text(step['arguments_bytes'])} "
                    f"({step['arguments_bytes'] / step['predicted_arguments_bytes'] - 1:+.2%})",
                    size_text(step["temporary_bytes"]),
                    "as predicted" if step["sends_as_predicted"] else "OTHERWISE",
                    f"{step['flops'] / 1e9:.1f} ({step['flops_by_predicted']:.2f})",
                    "n/a" if step["cycles"] is None else f"{step['cycles'] / 1e3:.0f}",
                    "n/a" if estimate is None else f"{estimate:.2f} ms",
                    "n/a" if ratio is None else f"{ratio:.2f}",
                )
            )
        if not row["compiled"] and row["reason"]:
            table.append((row["id"], row["layout"], str(row["batch"]), "-", row["reason"], *[""] * 6))
    wide = [line for line in table if not line[5]]
    widths = [max(len(line[n]) for line in (head, *table) if n < 4 or line not in wide) for n in range(len(head))]
    for line in (head, *table):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(
        f"{found['compiled']} programs compiled and {found['cached']} known, in {found['seconds']:.1f} s; cycles are "
        "the compiler's estimates, nothing was timed"
    )


def _say(task: Task) -> None:
    sys.stderr.write(f"Compiling {task.what} for {task.job.topology}\n")


def _answers(checks: Sequence[Check], cache: CompileCache, *, jobs: int, timeout: float) -> dict[str, Answer]:
    """Of all tasks, by their keys; several compilers at once have a share each."""
    # Rows that differ in the batch alone have the same prefill step, and many draw in as many rows.
    tasks = list({task.key: task for check in checks for task in reversed(check.tasks)}.values())
    if jobs > 1 and sum(cache.get(task.job) is None for task in tasks) > 1:
        shares = [tasks[n::jobs] for n in range(jobs)]
        found: dict[str, Answer] = {}
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            waiting = [pool.submit(_share, share, cache, timeout) for share in shares]
            for share, each in zip(shares, waiting, strict=True):
                try:
                    found |= each.result()
                except BrokenProcessPool as error:
                    refused = {"kind": "abort", "message": f"the process beside this one ended ({error})"}
                    found |= {task.key: Answer(None, refused, False) for task in share}
        return found
    return _share(tasks, cache, timeout)


def _share(tasks: Sequence[Task], cache: CompileCache, timeout: float) -> dict[str, Answer]:
    return {
        task.key: answer
        for task, answer in zip(tasks, run_tasks(tasks, cache, timeout=timeout, on_start=_say), strict=True)
    }
