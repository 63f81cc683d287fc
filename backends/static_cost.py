"""What a function costs on a chip that is not attached, by what its compiler says: memory, collectives, cycles."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.stages import Compiled, Lowered

from .base import PyTree
from .compiler.bundles import Schedule
from .compiler.errors import SchedulesMissingError
from .compiler.hlo import parse_module
from .compiler.hlo_collectives import collectives
from .compiler.hlo_costs import KernelCall, kernel_calls, operation_costs, path_cycles
from .compiler.hlo_flops import matmul_flops
from .compiler.hlo_runs import executions
from .compiler.hlo_traffic import hbm_traffic
from .compiler.kernel_cost import kernel_report
from .compiler.libtpu import clear_schedules, read_schedules
from .compiler.lowering import compile_lowered, lower, make_mesh
from .compiler.report import CompileReport, GpuKernelReport, KernelReport, MemoryReport
from .compiler.topologies import compiler_of, parse_topology
from .hardware import Chip
from .kernel_work import KernelWork

Work = KernelWork | Mapping[str, KernelWork] | Callable[[str], KernelWork | None] | None
"""The work of the kernels of a program: of its only kernel, or by name (`pallas_call(name=)`; the compiler puts a
number behind: "decode.3")."""

_MOST_OPERATIONS = 20


def analyze(
    function: Callable[..., PyTree],
    abstract_args: Sequence[PyTree],
    topology: str,
    *,
    work: Work = None,
    mesh_axes: Mapping[str, int] | None = None,
    in_specs: Sequence[PyTree] | None = None,
    donate: Sequence[int] = (),
    num_slices: int = 1,
    compiler_options: Mapping[str, Any] | None = None,
    on_program: Callable[[Lowered, Compiled], None] | None = None,
) -> CompileReport:
    """Compiles a function in this process and reads what the compiler says about it.

    Args:
        function: what to compile.
        abstract_args: arguments; only shapes and types are read.
        topology: such as "v6e:2x2".
        work: trips of loops that depend on data, conditions, bytes and FLOPs of the program's kernels.
        mesh_axes: names and sizes of the axes of the mesh to compile for; None is the first device alone.
        in_specs: for each argument a PartitionSpec, or a tree of them; None replicates.
        donate: numbers of the arguments that the call consumes.
        num_slices: slices of that topology, connected by the data-centre network.
        compiler_options: XLA's, of this compile alone.
        on_program: is given the program before and after compilation.

    Raises:
        UnknownTopologyError: the compiler does not know the topology.
        CompilerNotFoundError: libtpu is missing.
        CompileError: the compiler refuses the program; the class says what for.
        SchedulesMissingError: the program has kernels, and libtpu was loaded by somebody else.
    """
    mesh = make_mesh(topology, mesh_axes, num_slices=num_slices)
    lowered = lower(function, abstract_args, mesh, in_specs=in_specs, donate=donate)
    clear_schedules()
    began = time.perf_counter()
    compiled = compile_lowered(lowered, topology, compiler_options)
    seconds = time.perf_counter() - began
    if on_program is not None:
        on_program(lowered, compiled)
    return report_of(compiled, topology, num_devices=mesh.size, compile_seconds=seconds, work=work)


def report_of(
    compiled: Compiled, topology: str, *, num_devices: int, compile_seconds: float, work: Work = None
) -> CompileReport:
    """Reads a program that was compiled in this process, by its text and by what the compiler printed since
    clear_schedules."""
    described = parse_topology(topology)
    tpu = described.chip.platform == "tpu"  # no other compiler estimates cycles
    module = parse_module(compiled.as_text() or "")
    runs = executions(module)
    calls = kernel_calls(module, runs)
    schedules = read_schedules({call.name for call in calls}) if tpu else {}
    printed = {call.program: schedules[call.name] for call in calls if call.program and call.name in schedules}
    schedules = {call.name: printed[call.program] for call in calls if call.program in printed} | dict(schedules)
    works = _works(work, calls)
    kernels = tuple(_kernel(call, schedules, described.chip, works.get(call.name)) for call in calls if tpu)
    gpu_kernels = tuple(_gpu_kernel(call, works.get(call.name)) for call in calls if not tpu)
    written = [*kernels, *gpu_kernels]
    return CompileReport(
        topology=described.name,
        compiler=compiler_of(described),
        compile_seconds=compile_seconds,
        num_devices=num_devices,
        memory=_memory(compiled),
        flops=matmul_flops(module, runs) + sum(kernel.calls * (kernel.flops or 0) for kernel in written),
        hbm_bytes=hbm_traffic(module, runs) + sum(kernel.calls * (kernel.hbm_bytes or 0) for kernel in written),
        estimated_cycles=path_cycles(module, max) if tpu else None,
        least_cycles=path_cycles(module, min) if tpu else None,
        operations=operation_costs(module, runs)[:_MOST_OPERATIONS],
        collectives=collectives(module, runs),
        kernels=kernels,
        gpu_kernels=gpu_kernels,
        unknown_loops=runs.unknown_loops,
    )


def _memory(compiled: Compiled) -> MemoryReport:
    memory = compiled.memory_analysis()
    assert memory is not None  # only interpreters have none
    return MemoryReport(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        generated_code=memory.generated_code_size_in_bytes,
    )


def _kernel(call: KernelCall, schedules: Mapping[str, Schedule], chip: Chip, work: KernelWork | None) -> KernelReport:
    schedule = schedules.get(call.name)
    if schedule is None:
        raise SchedulesMissingError(
            f"the compiler printed no schedule of kernel {call.name}: libtpu was loaded before Distaff could ask for "
            "it (then analyze where no TPU is in use, or with compile_report), or its name is too long for a file"
        )
    return kernel_report(call.name, schedule, chip, work, calls=call.count, vmem_bytes=call.vmem_bytes)


def _gpu_kernel(call: KernelCall, work: KernelWork | None) -> GpuKernelReport:
    moved, flops = (work.hbm_bytes, work.flops) if work is not None else (None, None)
    return GpuKernelReport(call.label, call.count, moved, flops)


def _works(work: Work, calls: Sequence[KernelCall]) -> dict[str, KernelWork]:
    """The work of each kernel by the compiler's name for it.

    Raises:
        ValueError: it names a kernel that is not there, or does not say which of several it means.
    """
    names = [call.name for call in calls]
    labels = {call.name: call.label for call in calls}
    if isinstance(work, KernelWork):
        if len(set(labels.values())) > 1:
            raise ValueError(f"one KernelWork for the kernels {', '.join(names)}: give a mapping by name")
        return dict.fromkeys(names, work)
    if isinstance(work, Mapping):
        missing = sorted(set(work) - {*names, *labels.values()})
        if missing:
            raise ValueError(f"no kernel is named {missing[0]}; the program has {', '.join(names) or 'none'}")
        found = {name: work.get(name) or work.get(label) for name, label in labels.items()}
    else:
        found = {name: work(name) if work is not None else None for name in names}
    return {name: known for name, known in found.items() if known is not None}
