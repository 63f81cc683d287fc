"""Which of a program's operations the compiler fused: read from where each instruction says that it comes from."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .hlo import Instruction, Module
from .hlo_costs import cycles_of, is_kernel, scheduled
from .hlo_runs import Executions

_ORIGIN = re.compile(r'op_name="([^"]*)"')
_SILENT = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "broadcast", "iota")


@dataclass(frozen=True)
class Fusion:
    """An operation that runs by itself.

    Args:
        name: of the HLO instruction.
        opcode: "fusion", "custom-call" (a kernel), "copy", ...
        count: runs in one run of the program.
        cycles: of one run, as XLA estimates them; None if it does not.
        operations: HLO opcodes inside, each with where in the model it stands, in order and once each.
    """

    name: str
    opcode: str
    count: int
    cycles: int | None
    operations: tuple[str, ...]


def fusions(module: Module, runs: Executions) -> tuple[Fusion, ...]:
    """Fusions, kernels, copies and whatever else runs by itself and computes, in the order of the text."""
    return tuple(
        Fusion(
            instruction.name,
            instruction.opcode,
            count,
            cycles_of(instruction),
            tuple(dict.fromkeys(_operations(module, instruction))),
        )
        for _, instruction, count in scheduled(module, runs)
        if instruction.operation == "fusion" or is_kernel(instruction) or cycles_of(instruction) is not None
    )


def fusion_table(found: Sequence[Fusion]) -> str:
    """One block of lines for each: what runs, how often, and below it what is in it."""
    blocks = [
        f"{fusion.name}  {fusion.opcode} x{fusion.count}"
        + (f", {fusion.cycles} cycles" if fusion.cycles is not None else "")
        + "".join(f"\n    {operation}" for operation in fusion.operations)
        for fusion in found
    ]
    return "\n".join([*blocks, ""])


def _operations(module: Module, instruction: Instruction) -> Iterator[str]:
    if instruction.operation == "fusion":
        for inside in module.computations[(instruction.attribute("calls") or "").lstrip("%")]:
            yield from _operations(module, inside)
    elif instruction.opcode not in _SILENT:
        origin = _ORIGIN.search(instruction.attributes)
        yield f"{instruction.opcode}  {_place(origin[1])}".rstrip() if origin else instruction.opcode


def _place(origin: str) -> str:
    """An op_name without the scaffolding of tracing: "jit(step)/while/body/mlp/dot_general" is mlp/dot_general."""
    parts = [part for part in origin.split("/") if part not in ("while", "body", "cond", "closed_call", "eval_jaxpr")]
    return "/".join(part for part in parts if not re.fullmatch(r"p?jit\(.*\)|shard_map|checkpoint", part))
