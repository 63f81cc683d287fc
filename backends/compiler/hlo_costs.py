"""What XLA says that the operations of an optimised HLO module cost, and which of them are hand-written kernels."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .hlo import Instruction, Module
from .hlo_loops import trip_count
from .hlo_runs import Executions, callees
from .report import OperationCost

_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_VMEM = re.compile(r'"used_scoped_memory_configs":\[([^\]]*)\]')
_VMEM_SIZE = re.compile(r'"memory_space":"1","offset":"\d+","size":"(\d+)"')
_UNKNOWN_CYCLES = 1 << 50
"""What XLA prints for loops it cannot count is close to 2^64."""

_KERNEL = re.compile(r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton|mosaic_gpu\w*)"')
_BODY = re.compile(r'"body":"[^"]*"')
_OPERANDS = re.compile(r"operand_layout_constraints=\{(?:[^{}]|\{[^{}]*\})*\}")
_NAMED = re.compile(r'op_name="(?:[^"]*/)?([^"/]*)/pallas_call')
_NUMBER = re.compile(r"\.\d+$")


@dataclass(frozen=True)
class KernelCall:
    """A hand-written kernel.

    Args:
        name: of its instruction: on TPUs the kernel's name with a number behind.
        label: the kernel's own name, `pallas_call(name=)`.
        count: how often it runs.
        vmem_bytes: vector memory that it takes, where the compiler says so.
        program: its serialised code and the layouts of its operands; "" where the text does not show them. The TPU
            compiler makes the same program once, and prints one schedule, by the name of one of its calls.
    """

    name: str
    label: str
    count: int
    vmem_bytes: int | None
    program: str = ""


def operation_costs(module: Module, runs: Executions) -> tuple[OperationCost, ...]:
    """Estimated cycles of XLA's own operations, the costliest (all its runs together) first."""
    costs = [
        OperationCost(instruction.name, cycles, count)
        for _, instruction, count in scheduled(module, runs)
        if (cycles := cycles_of(instruction)) is not None
    ]
    return tuple(sorted(costs, key=lambda cost: -cost.cycles * cost.count))


def path_cycles(module: Module, choose: Callable[[Iterable[int]], int]) -> int:
    """Estimated cycles of one run, loops included, where of each conditional the branch runs that `choose` (min or
    max) chooses by its cycles."""
    total: dict[str, int] = {}
    for name, instructions in module.computations.items():  # callees first
        cycles = 0
        for instruction in instructions:
            inside = [total[callee] for callee, fused in callees(instruction) if not fused]
            if instruction.opcode == "conditional":
                cycles += choose(inside)
            else:
                trips = (trip_count(module, name, instruction) or 1) if instruction.opcode == "while" else 1
                cycles += trips * sum(inside) + (cycles_of(instruction) or 0)
        total[name] = cycles
    return total[module.entry]


def kernel_calls(module: Module, runs: Executions) -> tuple[KernelCall, ...]:
    """Mosaic and Triton kernels in the order of the text."""
    return tuple(
        KernelCall(instruction.name, _label(instruction), count, _vmem(instruction), _program(instruction))
        for _, instruction, count in scheduled(module, runs)
        if is_kernel(instruction)
    )


def scheduled(module: Module, runs: Executions) -> Iterator[tuple[str, Instruction, int]]:
    """Instructions that run by themselves, not as parts of a fusion: their computation, themselves, and how often."""
    for name, instructions in module.computations.items():
        run = runs.of.get(name)
        if run is not None and run.owner == name:
            for instruction in instructions:
                yield name, instruction, run.count


def cycles_of(instruction: Instruction) -> int | None:
    """XLA's estimate of one run; None where it makes none."""
    cycles = _CYCLES.search(instruction.attributes)
    return int(cycles[1]) if cycles and int(cycles[1]) < _UNKNOWN_CYCLES else None


def is_kernel(instruction: Instruction) -> bool:
    """Is it a Mosaic or Triton kernel?"""
    return instruction.opcode == "custom-call" and _KERNEL.search(instruction.attributes) is not None


def _label(kernel: Instruction) -> str:
    named = _NAMED.search(kernel.attributes)
    return _NUMBER.sub("", kernel.name) if "tpu_custom_call" in kernel.attributes or not named else named[1]


def _program(kernel: Instruction) -> str:
    return "".join(found[0] for pattern in (_BODY, _OPERANDS) if (found := pattern.search(kernel.attributes)))


def _vmem(kernel: Instruction) -> int | None:
    used = _VMEM.search(kernel.attributes)
    if used is None:
        return None
    size = _VMEM_SIZE.search(used[1])
    return int(size[1]) if size else 0
