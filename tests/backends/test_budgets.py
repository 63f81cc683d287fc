"""No kernel takes more than three per cent more cycles than it was accepted with, or than its bar."""

from collections.abc import Iterator, Mapping

import pytest

from distaff.backends.compile_job import CompileJob, resolve, run_job
from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.libtpu import libtpu_version
from distaff.backends.hardware import chip
from distaff.backends.kernel_budgets import budgets
from distaff.backends.kernel_work import KernelWork
from distaff.scripts.kernel_rows import KernelRow, figures, ideal_cycles, kernel_rows
from distaff.scripts.step_case import step_bytes

SAMPLE = {("decode", "v6e", "B64 ctx4096 page16 bf16")}
"""What is compiled even where there is little time."""

SLOW = {
    "B64 ctx4096 page16 bf16",
    "B64 ctx4096 page16 fp8",
    "B64 ctx4096 page16 int8",
    "T4096 bf16",
    "T4096 bf16 page128",
    "R512 E128 I2048 O768 bf16",
    "B64 ctx128 of8192 page128 bf16",
    "R512 D4096 bf16",
}
"""Shapes that CI compiles for every generation; `scripts/test --soak` compiles all that have a budget."""


def mark_of(row: KernelRow) -> pytest.MarkDecorator | tuple[()]:
    if (row.kernel, row.generation, row.shape_text) in SAMPLE:
        return ()
    return pytest.mark.slow if row.shape_text in SLOW else pytest.mark.soak


def budgeted() -> Iterator[KernelRow]:
    """Our rows with a budget for the compiler that is installed."""
    try:
        libtpu = libtpu_version()
    except CompilerNotFoundError:
        return
    for row in kernel_rows():
        if row.ours and (row.kernel, row.shape_text) in budgets(row.generation, libtpu):
            yield row


def parameters() -> list[object]:
    return [
        pytest.param(
            row,
            id=f"{row.kernel} {row.generation} {row.shape_text}",
            marks=mark_of(row),
        )
        for row in budgeted()
    ]


def at_budget(row: KernelRow) -> dict[str, float | None]:
    """The figures that bars are about, of a kernel that just keeps to its budget."""
    most = budgets(row.generation, libtpu_version())[row.kernel, row.shape_text].most
    known = chip(row.generation)
    if row.kernel == "step":
        moved = sum(step_bytes(str(row.shape["model"]), int(row.shape["batch"]), int(row.shape["context"])))
        return {"step_ratio": most / known.clock_hertz / (moved / known.device_hbm_bytes_per_second)}
    work = resolve(row.builder)(**row.arguments).work
    if isinstance(work, Mapping):  # of the kernel that moves most
        (work,) = work.values()
    assert isinstance(work, KernelWork)
    found: dict[str, float | None] = {
        "ratio": most / known.clock_hertz / (work.hbm_bytes / known.device_hbm_bytes_per_second)
    }
    if "length" in row.shape:
        found["mxu_ratio"] = most / ideal_cycles(row.generation, work.flops, int(row.shape["head_dim"]))
    return found


def test_no_budget_lets_a_kernel_pass_its_bar() -> None:
    """Where three per cent would, the budget has a growth of its own."""
    rows = list(budgeted())
    passed = [
        f"{row.kernel} {row.generation} {row.shape_text}: {bar.figure} {known[bar.figure]}, {bar.limit}"
        for row in rows
        for bar, known in ((bar, at_budget(row)) for bar in row.bars if bar.figure.endswith("ratio"))
        if not bar.met(known)
    ]
    assert passed == [] and len(rows) > 80


@pytest.mark.parametrize("row", parameters())
def test_a_kernel_keeps_its_budget(row: KernelRow) -> None:
    report = run_job(CompileJob(row.builder, row.arguments, row.topology))
    cycles = figures(row, report)["cycles"]
    budget = budgets(row.generation, libtpu_version())[row.kernel, row.shape_text]
    assert cycles is not None
    print(f"{row.kernel} {row.generation} {row.shape_text}: {cycles:.0f} cycles of {budget.cycles}")
    assert budget.allows(cycles), (
        f"{row.kernel} on {row.generation} at {row.shape_text} takes {cycles:.0f} cycles, {cycles / budget.cycles:.3f} "
        "of its budget: make it faster, or raise the budget with `distaff bench kernels --accept --reason`"
    )
