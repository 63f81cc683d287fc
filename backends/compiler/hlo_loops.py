"""Trip counts of `while` loops in optimised HLO, whose conditions compare a counter with a constant."""

import re
from math import ceil

from .hlo import Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FORWARDING = ("copy", "bitcast", "convert", "reshape")


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often the body of a `while` runs each time that the loop is reached; None if the text does not say."""
    known = _KNOWN.search(loop.attributes)
    if known:
        return int(known[1])
    condition = (loop.attribute("condition") or "").lstrip("%")
    body = (loop.attribute("body") or "").lstrip("%")
    test = _comparison(module, condition)
    if test is None:
        return None
    direction, left, right = test
    init = _named(module, computation, loop.operands[0])
    counter, bound = (left, right) if _element(module, condition, left) is not None else (right, left)
    place = _element(module, condition, counter)
    if init is None or place is None:
        return None
    if counter is right:
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    first = _value(module, computation, _operand(init, place))
    last = _value(module, condition, bound)
    if last is None:  # the bound may be carried through the loop
        carried = _element(module, condition, bound)
        last = None if carried is None else _value(module, computation, _operand(init, carried))
    step = _step(module, body, place)
    if first is None or last is None or not step:
        return None
    distance = last - first + {"LE": 1, "GE": -1}.get(direction, 0)
    return max(0, ceil(distance / step)) if direction in ("LT", "LE", "GT", "GE", "NE") else None


def _comparison(module: Module, condition: str) -> tuple[str, str, str] | None:
    """(direction, left, right) of the comparison that a condition returns; names are of the condition itself."""
    root = next(instruction for instruction in module.computations[condition] if instruction.root)
    compare, names = root, dict[str, str]()
    if root.opcode == "fusion":
        fused = module.computations[(root.attribute("calls") or "").lstrip("%")]
        compare = next(instruction for instruction in fused if instruction.root)
        for parameter in fused:
            if parameter.opcode == "parameter":
                names[parameter.name] = root.operands[int(parameter.arguments)]
    if compare.opcode != "compare" or any(root is not compare and name not in names for name in compare.operands):
        return None
    left, right = (names.get(name, name) for name in compare.operands)
    return compare.attribute("direction") or "", left, right


def _named(module: Module, computation: str, name: str) -> Instruction | None:
    return module.by_name[computation].get(name)


def _operand(instruction: Instruction, place: int) -> str:
    return instruction.operands[place] if place < len(instruction.operands) else ""


def _forwarded(module: Module, computation: str, name: str) -> Instruction | None:
    """The instruction that a value comes from, through copies."""
    instruction = _named(module, computation, name)
    while instruction is not None and instruction.opcode in _FORWARDING:
        instruction = _named(module, computation, instruction.operands[0])
    return instruction


def _element(module: Module, computation: str, name: str) -> int | None:
    """The element of the computation's parameter that a value is."""
    instruction = _forwarded(module, computation, name)
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    source = _named(module, computation, instruction.operands[0])
    return int(instruction.attribute("index") or 0) if source is not None and source.opcode == "parameter" else None


def _value(module: Module, computation: str, name: str) -> int | None:
    """A value, if it is an integer constant."""
    instruction = _forwarded(module, computation, name)
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None


def _step(module: Module, body: str, place: int) -> int | None:
    """What the body adds to element `place` of its carry."""
    root = next(instruction for instruction in module.computations[body] if instruction.root)
    added = _forwarded(module, body, _operand(root, place)) if root.opcode == "tuple" else None
    if added is None or added.opcode != "add":
        return None
    steps = [_value(module, body, operand) for operand in added.operands]
    known = [step for step in steps if step is not None]
    return known[0] if len(known) == 1 else None
