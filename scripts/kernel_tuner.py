"""Looks for the block sizes that a kernel is fastest with: by the compiler's schedules, or on an attached TPU."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import inf
from operator import truediv
from pathlib import Path
from typing import Any

from ..backends.compiler.errors import CompileError
from .kernel_rows import KernelRow

Blocks = Mapping[str, Any]

TABLE = Path(__file__).resolve().parent.parent / "backends" / "tpu" / "block_sizes.yaml"

_TILES: Mapping[str, Sequence[Any]] = {"queries": (128, 256), "keys": (128, 256, 512), "heads": (4, 8, 16)}
CANDIDATES: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "decode": {"block": (256, 512, 1024, 2048)},
    "flash": _TILES,
    "prefill": _TILES,
}
"""What is tried for each kernel; what is not named stays as the table has it."""


def tune_rows(rows: Sequence[KernelRow], table: Path = TABLE) -> Iterator[str]:
    """Tries all candidates on the shapes of each kernel and generation, and writes the best into the table.

    The best one has the least sum, over the shapes, of times in units of the best time of each shape. A candidate that
    does not compile for one of them is out.

    Yields:
        What was found, a line for each kernel and generation.
    """
    groups: dict[tuple[str, str], list[KernelRow]] = {}
    for row in rows:
        if row.kernel in CANDIDATES:
            groups.setdefault((row.kernel, row.generation), []).append(row)
    for (kernel, generation), shapes in groups.items():
        began = time.perf_counter()
        current = entry(table, kernel, generation)
        tried = candidates(kernel, current)
        times = [_times(shapes, blocks) for blocks in tried]
        scores = relative(times)
        best = min(range(len(tried)), key=lambda number: scores[number])
        if scores[best] == inf:
            yield f"{kernel} {generation}: no candidate compiles for all {len(shapes)} shapes"
            continue
        old = scores[tried.index(dict(current))]
        write_entry(table, kernel, generation, tried[best])
        yield (
            f"{kernel} {generation}: {json.dumps(tried[best])} takes {scores[best]:.3f} of the best times, the table's "
            f"{json.dumps(dict(current))} {old:.3f} ({len(tried)} candidates, {time.perf_counter() - began:.0f} s)"
        )


def candidates(kernel: str, current: Blocks) -> list[dict[str, Any]]:
    """What to try: the table's own first, then every combination."""
    names = list(CANDIDATES[kernel])
    tried = [dict(current)]
    for values in product(*(CANDIDATES[kernel][name] for name in names)):
        blocks = {**current, **dict(zip(names, values, strict=True))}
        if blocks not in tried:
            tried.append(blocks)
    return tried


def relative(times: Sequence[Sequence[float]]) -> list[float]:
    """For each candidate its mean time, each shape in units of the best candidate's; inf for one that is out."""
    inside = [of_candidate for of_candidate in times if inf not in of_candidate]
    best = [min(of_shape) for of_shape in zip(*inside, strict=True)]
    return [inf if inf in of_candidate else sum(map(truediv, of_candidate, best)) / len(best) for of_candidate in times]


def entry(table: Path, kernel: str, generation: str) -> Blocks:
    """A kernel's sizes for one generation."""
    import yaml

    return yaml.safe_load(table.read_text())[kernel][generation]


def write_entry(table: Path, kernel: str, generation: str, blocks: Blocks) -> None:
    """Replaces one line of the table, and leaves its comments alone."""
    flow = "{" + ", ".join(f"{name}: {json.dumps(value)}" for name, value in blocks.items()) + "}"
    section = re.compile(rf"(^{kernel}:\n(?:(?:  .*|#.*)\n)*?  {generation}: )\{{.*\}}", re.MULTILINE)
    text, count = section.subn(lambda found: found[1] + flow, table.read_text())
    assert count == 1, f"{table}: no line of {kernel} on {generation}"
    table.write_text(text)


def _times(shapes: Sequence[KernelRow], blocks: Blocks) -> list[float]:
    """Microseconds of each shape: measured where a TPU of the generation is attached, else static. inf: it does not
    compile."""
    from .startup import has_tpu

    if has_tpu():
        from .kernel_timing import measured_us

        measured = [measured_us(row, blocks=dict(blocks)) for row in shapes]
        known = [value for value in measured if value is not None]
        if len(known) == len(shapes):
            return known
    from ..backends.aot import CompileJob, compile_reports
    from .kernel_rows import figures

    jobs = [CompileJob(row.builder, {**row.arguments, "blocks": dict(blocks)}, row.topology) for row in shapes]
    times: list[float] = []
    for row, (_, answer) in zip(shapes, compile_reports(jobs), strict=True):
        if isinstance(answer, CompileError):
            times.append(inf)
            continue
        found = figures(row, answer)
        # HBM time is the same for all; where it hides the cycles, fewer of them still leave more room.
        times.append(found["compute_us"] or 0.0)
    return times
