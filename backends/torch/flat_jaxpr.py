"""A flat jaxpr: calls are inlined, what nobody reads is gone, every value has a number."""

import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from .dtypes import is_key

# Calls that change nothing for whoever evaluates them: name -> the parameter that holds what is called.
_CALLS = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
}
# One that each device of a mesh makes, of its parts.
_MAPPED = {"shard_map": "jaxpr"}


@dataclass(frozen=True)
class Aval:
    """Shape and type of a value; those of a random key are its two words'."""

    shape: tuple[int, ...]
    dtype: Any
    key: bool = False

    @classmethod
    def of(cls, aval: Any) -> "Aval":
        if is_key(aval.dtype):
            return cls((*aval.shape, 2), "uint32", key=True)
        return cls(tuple(aval.shape), aval.dtype)


@dataclass(frozen=True)
class Constant:
    """A literal of the jaxpr."""

    value: Any
    aval: Aval


type Atom = int | Constant


@dataclass(frozen=True)
class Op:
    """One equation: inputs are numbers of values or literals, outputs are numbers of values. `sources` tell where it
    was written, then where what holds it was called."""

    name: str
    params: Mapping[str, Any]
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    sources: tuple[Any, ...] = field(compare=False, repr=False)


@dataclass
class FlatJaxpr:
    """A program without calls. `constants` are arrays that came with the jaxpr; `avals` tell of each value."""

    inputs: list[int]
    constants: dict[int, Any]
    ops: list[Op]
    outputs: list[Atom]
    avals: dict[int, Aval]

    def aval(self, atom: Atom) -> Aval:
        return atom.aval if isinstance(atom, Constant) else self.avals[atom]

    def last_uses(self) -> dict[int, int]:
        """The last operation that reads each value; outputs are read behind the last one."""
        last: dict[int, int] = {}
        for number, op in enumerate(self.ops):
            last.update({atom: number for atom in op.ins if isinstance(atom, int)})
        last.update({atom: len(self.ops) for atom in self.outputs if isinstance(atom, int)})
        return last


type Whole = Callable[[str, Jaxpr], tuple[str, Mapping[str, Any]] | None]
"""Which operation, with which parameters, stands for a call of a function of this name; None: its body does."""


def flatten_jaxpr(jaxpr: Jaxpr, whole: Whole = lambda name, called: None, *, parts: bool = False) -> FlatJaxpr:
    """Inlines and prunes a jaxpr, but for calls that are one operation as a whole.

    Args:
        jaxpr: the program.
        whole: tells those calls.
        parts: whether a program for all devices of a mesh becomes that of one of them, with its parts as inputs.
    """
    numbers = itertools.count()
    program = FlatJaxpr([], {}, [], [], {})
    scope: dict[Any, Atom] = {}
    for var in jaxpr.invars:
        number = scope[var] = next(numbers)
        program.avals[number] = Aval.of(var.aval)
        program.inputs.append(number)
    _inline(jaxpr, scope, program, numbers, whole, _CALLS | _MAPPED if parts else _CALLS)
    program.outputs = [_read(scope, atom) for atom in jaxpr.outvars]
    prune(program)
    return program


def _inline(
    jaxpr: Jaxpr, scope: dict[Any, Atom], program: FlatJaxpr, numbers: Iterator[int], whole: Whole,
    calls: Mapping[str, str], callers: tuple[Any, ...] = (),
) -> None:  # fmt: skip
    for var, value in zip(jaxpr.constvars, jaxpr.consts, strict=True):
        number = scope[var] = next(numbers)
        program.avals[number] = Aval.of(var.aval)
        program.constants[number] = value
    for eqn in jaxpr.eqns:
        ins = [_read(scope, atom) for atom in eqn.invars]
        called, name, params = _called(eqn, calls), eqn.primitive.name, eqn.params
        spelled = None if called is None else whole(str(params.get("name")), called)
        if spelled is not None:
            name, params = spelled
        elif called is not None:
            inner: dict[Any, Atom] = dict(zip(called.invars, ins, strict=True))
            if name in _MAPPED:
                program.avals |= {atom: Aval.of(var.aval) for var, atom in inner.items() if isinstance(atom, int)}
            _inline(called, inner, program, numbers, whole, calls, (eqn.source_info, *callers))
            scope.update({var: _read(inner, atom) for var, atom in zip(eqn.outvars, called.outvars, strict=True)})
            continue
        outs: list[int] = []
        for var in eqn.outvars:
            number = scope[var] = next(numbers)
            program.avals[number] = Aval.of(var.aval)
            outs.append(number)
        program.ops.append(Op(name, params, tuple(ins), tuple(outs), (eqn.source_info, *callers)))


def _called(eqn: JaxprEqn, calls: Mapping[str, str]) -> Jaxpr | None:
    parameter = calls.get(eqn.primitive.name)
    return None if parameter is None else eqn.params[parameter]


def _read(scope: Mapping[Any, Atom], atom: Any) -> Atom:
    return Constant(atom.val, Aval.of(atom.aval)) if isinstance(atom, Literal) else scope[atom]


def prune(program: FlatJaxpr) -> None:
    """Leaves out operations whose results nobody reads: no primitive of a step has an effect."""
    wanted = {atom for atom in program.outputs if isinstance(atom, int)}
    kept: list[Op] = []
    for op in reversed(program.ops):
        if wanted.intersection(op.outs):
            kept.append(op)
            wanted.update(atom for atom in op.ins if isinstance(atom, int))
    program.ops = kept[::-1]
    program.constants = {number: value for number, value in program.constants.items() if number in wanted}


def place_of(op: Op) -> str:
    """Where in the source an operation was written: the innermost frame outside JAX's and flax's own files."""
    for source in op.sources:
        made, found = getattr(source, "traceback", None), None
        for frame, line in traceback.walk_tb(made.as_python_traceback()) if made is not None else ():
            file = frame.f_code.co_filename
            if not any(part in file for part in ("/jax/", "/jaxlib/", "/flax/", "<")):
                found = f"{file}:{line} ({frame.f_code.co_name})"
        if found is not None:
            return found
    return "an unknown place"
