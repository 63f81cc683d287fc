"""Bytes that XLA's own operations move between the chip and its main memory (HBM), loops included.

What lies in memory on the chip (a layout that names another memory space than the default) costs nothing. An operation
reads of an operand only the part that it slices or gathers, and writes of a result that it updates in place only the
update; inside a fusion the same holds for what the fusion does with each of its parameters.
"""

from collections.abc import Mapping

from .hlo import ARRAY_WITH_LAYOUT, Instruction, Module, shape_bytes, tuple_elements
from .hlo_costs import is_kernel, scheduled
from .hlo_runs import Executions

_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "async"),  # what they run is counted by itself
    *("send", "recv"),
)
_PARTIAL = ("dynamic-slice", "slice", "gather")


def hbm_traffic(module: Module, runs: Executions) -> int:
    """Bytes read from and written to HBM in one run of the module; hand-written kernels are not in it."""
    reader = _Reader(module)
    total = 0
    for computation, instruction, count in scheduled(module, runs):
        ended = instruction.opcode.endswith(("-done", "-update"))
        if ended or instruction.operation in _FREE or is_kernel(instruction):
            continue
        total += count * reader.moved(computation, instruction)
    return total


def hbm_bytes(shape: str) -> int:
    """Bytes of the arrays of a shape that lie in HBM."""
    return sum(shape_bytes(array) for array, layout in ARRAY_WITH_LAYOUT.findall(shape) if "S(" not in layout)


class _Reader:
    """Sizes of what instructions touch."""

    def __init__(self, module: Module) -> None:
        self._computations = module.by_name

    def moved(self, computation: str, instruction: Instruction) -> int:
        """Bytes that one run of an instruction moves."""
        operands = [self._computations[computation][name] for name in instruction.operands]
        read = sum(self._read(instruction, place, operand.shape) for place, operand in enumerate(operands))
        return read + self._written(computation, instruction)

    def _read(self, user: Instruction, place: int, shape: str) -> int:
        """Bytes of operand `place`, of that shape, that an instruction reads from HBM."""
        if not hbm_bytes(shape):
            return 0
        if user.operation == "fusion":
            return min(hbm_bytes(shape), self._used(_called(user), place))
        if user.operation in _PARTIAL and place == 0:
            return shape_bytes(user.result)
        if user.opcode == "dynamic-update-slice" and place == 0:
            return 0
        return hbm_bytes(shape)

    def _used(self, fused: str, parameter: int) -> int:
        """Bytes that a fusion uses of one of its parameters, wherever that lies."""
        instructions = self._computations[fused].values()
        waiting = [
            instruction
            for instruction in instructions
            if instruction.opcode == "parameter" and int(instruction.arguments) == parameter
        ]
        whole, used = shape_bytes(waiting[0].shape), 0
        while waiting:
            value = waiting.pop()
            for user in instructions:
                for place, operand in enumerate(user.operands):
                    if operand != value.name:
                        continue
                    if user.opcode == "bitcast" or (user.opcode == "fusion" and self._is_bitcast(_called(user))):
                        waiting.append(user)
                    elif user.opcode == "fusion":
                        used += self._used(_called(user), place)
                    elif user.opcode in _PARTIAL and place == 0:
                        used += shape_bytes(user.shape)
                    elif not (user.opcode == "dynamic-update-slice" and place == 0):
                        return whole
        return min(used, whole)

    def _is_bitcast(self, fused: str) -> bool:
        """Does a fusion only give its parameter another shape?"""
        return all(inside.opcode in ("parameter", "bitcast") for inside in self._computations[fused].values())

    def _written(self, computation: str, instruction: Instruction) -> int:
        if instruction.opcode == "dynamic-update-slice":
            update = self._computations[computation][instruction.operands[1]]
            return shape_bytes(update.shape) if hbm_bytes(instruction.shape) else 0
        if instruction.operation == "fusion":
            fused = self._computations[_called(instruction)]
            root = next(inside for inside in fused.values() if inside.root)
            if root.opcode == "tuple":
                shapes = tuple_elements(instruction.result)
                return sum(
                    self._result(fused, fused[name], shape) for name, shape in zip(root.operands, shapes, strict=True)
                )
            return self._result(fused, root, instruction.result)
        return hbm_bytes(instruction.result)

    def _result(self, fused: Mapping[str, Instruction], result: Instruction, shape: str) -> int:
        while result.opcode == "bitcast":
            result = fused[result.operands[0]]
        if result.opcode == "dynamic-update-slice" and hbm_bytes(shape):
            return shape_bytes(fused[result.operands[1]].shape)
        return hbm_bytes(shape)


def _called(fusion: Instruction) -> str:
    return (fusion.attribute("calls") or "").lstrip("%")
