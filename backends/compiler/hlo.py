"""Reads the text of an optimised HLO module into computations and instructions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_COMPUTATION = re.compile(r"(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_OPCODE = re.compile(r" *([\w\-]+)\(")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
ARRAY_WITH_LAYOUT = re.compile(r"\b([a-z]+\d*\w*\[[\d,]*\])(\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Instruction:
    """One line. `shape` is its result as printed; `operands` the names; `arguments` and `attributes` their text."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(NAME.findall(self.arguments))

    @property
    def operation(self) -> str:
        """The opcode; of an asynchronous operation where it starts, what it does."""
        return self.opcode.removesuffix("-start")

    @property
    def result(self) -> str:
        """The shape of what comes out: asynchronous operations return their operands and their state beside it."""
        if not self.opcode.endswith("-start") or not self.shape.startswith("("):
            return self.shape
        elements = tuple_elements(self.shape)
        if self.opcode == "copy-start":
            return elements[0]
        nested = elements[0].startswith("(")
        return elements[1] if nested or self.operation in ("all-gather", "collective-permute") else self.shape

    def attribute(self, name: str) -> str | None:
        """The text behind `name=`, up to the comma or closing bracket that ends it."""
        found = re.search(rf"(?:^|[ ,]){re.escape(name)}=", self.attributes)
        return None if found is None else _until_separator(self.attributes, found.end())


@dataclass(frozen=True)
class Module:
    """Computations by name, callees before callers, as HLO text has them."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @cached_property
    def by_name(self) -> Mapping[str, Mapping[str, Instruction]]:
        """The instructions of each computation by their names."""
        return {
            computation: {instruction.name: instruction for instruction in instructions}
            for computation, instructions in self.computations.items()
        }


def parse_module(text: str) -> Module:
    """Reads `Compiled.as_text()`.

    Raises:
        ValueError: there is no ENTRY computation in it.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry = ""
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        header = _COMPUTATION.match(line) if name is None else None
        if header:
            name, lines = header["name"], []
            entry = name if header[1] else entry
        elif name is not None and line.startswith("}"):  # which core runs it may stand behind
            computations[name] = tuple(_instruction(statement) for statement in lines)
            name = None
        elif name is not None:
            if _INSTRUCTION.match(line):
                lines.append(line)
            elif lines:  # attributes of Mosaic kernels span lines
                lines[-1] += "\n" + line
    if not entry:
        raise ValueError("no ENTRY computation: not the text of an HLO module")
    return Module(computations, entry)


def shape_bytes(shape: str) -> int:
    """Bytes of an array or of a tuple's arrays together, without the padding of tiles."""
    return sum(_elements(dims) * element_bits(kind) // 8 for kind, dims in ARRAY.findall(shape))


def tuple_elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, a tuple inside it being one of them; an array is its own only element."""
    if not shape.startswith("("):
        return [shape]
    elements, depth, start = list[str](), 0, 1
    for place, character in enumerate(shape):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            elements.append(shape[start:place])
            start = place + 1
    return elements


def element_bits(kind: str) -> int:
    """Width of an HLO element type: 16 for "bf16", 8 for "f8e4m3fn"."""
    if kind in _BITS:
        return _BITS[kind]
    digits = re.match(r"[a-z]+(\d+)", kind)
    return int(digits[1]) if digits else 0


def _elements(dims: str) -> int:
    count = 1
    for size in dims.split(","):
        count *= int(size) if size else 1
    return count


def _instruction(line: str) -> Instruction:
    head = _INSTRUCTION.match(line)
    assert head is not None
    shape_end = _closing(line, head.end()) if line[head.end()] == "(" else line.index(" ", head.end())
    opcode = _OPCODE.match(line, shape_end)
    if opcode is None:
        raise ValueError(f"not an HLO instruction: {line[:200]}")
    arguments_end = _closing(line, opcode.end() - 1)
    return Instruction(
        name=head["name"],
        shape=line[head.end() : shape_end],
        opcode=opcode[1],
        arguments=line[opcode.end() : arguments_end - 1],
        attributes=line[arguments_end:].lstrip(", "),
        root=bool(head["root"]),
    )


def _closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place + 1
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def _until_separator(text: str, start: int) -> str:
    """From `start` to the comma outside of brackets and quotes that ends a value."""
    depth, quoted = 0, False
    for place in range(start, len(text)):
        character = text[place]
        if character == '"' and text[place - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            return text[start:place]
    return text[start:]
