"""How often each computation of an HLO module runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from .hlo import NAME, Instruction, Module
from .hlo_loops import trip_count

_CALLERS = ("while", "conditional", "fusion", "call", "async", "custom-call")


@dataclass
class Execution:
    """How often a computation runs in one run of the module.

    Args:
        count: loops included; all branches of a conditional count as taken.
        owner: the computation whose schedule it belongs to: itself, or for the inside of a fusion its caller's.
    """

    count: int = 0
    owner: str = ""


@dataclass
class Executions:
    """Of every computation that runs; `unknown_loops` are `while` instructions whose trips the text does not say."""

    of: dict[str, Execution] = field(default_factory=dict)
    unknown_loops: int = 0


def executions(module: Module) -> Executions:
    """Counts the runs of each computation, trip counts of loops applied."""
    runs = Executions()
    runs.of[module.entry] = Execution(1, module.entry)
    for name in reversed(list(module.computations)):  # callers first
        run = runs.of.get(name)
        if run is None:
            continue
        for instruction in module.computations[name]:
            trips: int | None = 1
            if instruction.opcode == "while":
                trips = trip_count(module, name, instruction)
                runs.unknown_loops += trips is None
            for callee, fused in callees(instruction):
                called = runs.of.setdefault(callee, Execution(0, run.owner if fused else callee))
                called.count += run.count * (1 if trips is None else trips)
    return runs


def callees(instruction: Instruction) -> Iterator[tuple[str, bool]]:
    """Computations that an instruction runs as a program (not the scalar functions that it applies), and whether they
    are parts of it."""
    if instruction.operation not in _CALLERS:
        return
    for attribute in ("body", "true_computation", "false_computation"):
        value = instruction.attribute(attribute)
        if value:
            yield value.lstrip("%"), False
    for name in NAME.findall(instruction.attribute("branch_computations") or ""):
        yield name, False
    called = instruction.attribute("calls")
    if called and not instruction.opcode.endswith(("-update", "-done")):  # it ran where it started
        yield called.lstrip("%"), instruction.operation == "fusion"
    applied = instruction.attribute("to_apply")
    if applied and instruction.operation == "call":
        yield applied.lstrip("%"), False
