"""Compiles for an accelerator that is not attached, with the compiler that will serve it there.

`compile_ahead` gives the program, `compile_report` what the compiler says about it. The latter works in a process of
its own, because compilers abort; static_cost.analyze does the same in this process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .base import Program, PyTree
from .compile_job import Case, CompileJob
from .compile_process import CompileProcess
from .compiler.errors import CompileError
from .compiler.libtpu import clear_schedules
from .compiler.lowering import compile_lowered, lower, make_mesh
from .compiler.report import CompileReport

__all__ = ["Case", "CompileJob", "CompileReport", "compile_ahead", "compile_report", "compile_reports"]


def compile_ahead(
    function: Callable[..., PyTree],
    abstract_args: Sequence[PyTree],
    topology: str,
    *,
    donate: Sequence[int] = (),
    compiler_options: Mapping[str, Any] | None = None,
) -> Program:
    """Compiles a function for the first device of a topology, in this process.

    Args:
        function: what to compile.
        abstract_args: arguments; only shapes and types are read.
        topology: such as "v6e:2x2".
        donate: numbers of the arguments that the call consumes.
        compiler_options: XLA's; those of a step are its backend's: without them a GPU copies each layer's weights out
            of their stack, and a tpu7x all weights to other tiles.

    Raises:
        UnknownTopologyError: no compiler knows the topology.
        CompilerNotFoundError: the compiler is not installed.
        CompileError: the compiler refuses the program; the class says what for.
    """
    try:
        return compile_lowered(
            lower(function, abstract_args, make_mesh(topology), donate=donate), topology, compiler_options
        )
    finally:
        clear_schedules()  # nobody asks for them


def compile_report(job: CompileJob, *, timeout: float = 600.0, kernels: str | None = None) -> CompileReport:
    """Compiles one job in a process of its own; see CompileProcess and its `run` for arguments and errors."""
    with CompileProcess(kernels) as process:
        return process.run(job, timeout=timeout)


def compile_reports(
    jobs: Iterable[CompileJob], *, timeout: float = 600.0, kernels: str | None = None
) -> Iterator[tuple[CompileJob, CompileReport | CompileError]]:
    """Compiles jobs one after another in one process, which is started again where one of them ends it.

    Args:
        timeout: seconds for each.
        kernels: whose schedules are wanted; see CompileProcess.

    Yields:
        Each job with its report, or with the error of a program that did not compile.

    Raises:
        DistaffError: what is wrong with all of them, such as a compiler that is not installed.
    """
    with CompileProcess(kernels) as process:
        for job in jobs:
            try:
                yield job, process.run(job, timeout=timeout)
            except CompileError as error:
                yield job, error
