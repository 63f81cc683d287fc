"""Idioms: what several operations of a jaxpr spell, and torch says in one call.

On the host every call costs a microsecond or two, whatever it computes, and a layer has dozens. Norms and rotations
are found by their shape, since models/ writes them in jax.numpy; compilers of other devices fuse by themselves and see
their operations as they are. Functions that JAX traces as a call are known by name, for any device.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .control_flow import inner_jaxprs
from .flat_jaxpr import Atom, Constant, FlatJaxpr, Op, flatten_jaxpr, prune
from .names import DType, Tensor, Value, torch
from .rules import Equation, Rule

# What each of JAX's ways to search compares by, where equal numbers stand before the place that is sought.
_RIGHT = {"_searchsorted_scan_impl": "lt_to", "_searchsorted_compare_all_impl": "le_to"}
_VIEWS = ("broadcast_in_dim", "reshape", "squeeze")


def whole_call(name: str, jaxpr: Any) -> tuple[str, Mapping[str, Any]] | None:
    """The operation, and its parameters, that stands for a call of one of JAX's functions; None: its body does."""
    if name == "silu":
        return "silu", {}
    if name == "searchsorted":
        table, sought = (var.aval for var in jaxpr.invars)
        whole_numbers = table.dtype == sought.dtype and table.dtype.name in ("int8", "int16", "int32", "uint8")
        ways = {eqn.params.get("name") for eqn in jaxpr.eqns} & {*_RIGHT}
        compares = {"lt_to", "le_to"} & {*_primitives(jaxpr)}
        if table.ndim == 1 and whole_numbers and len(ways) == len(compares) == 1:
            return "searchsorted", {"right": compares == {_RIGHT[ways.pop()]}}
    return None


def _primitives(jaxpr: Any) -> Iterator[str]:
    for op in flatten_jaxpr(jaxpr).ops:
        yield op.name
        for inner in inner_jaxprs(op):
            yield from _primitives(inner)


def find_idioms(program: FlatJaxpr) -> None:
    """Replaces operations that spell an idiom by one that names it."""
    _skip_what_changes_nothing(program)
    _Finder(program).replace_all()
    prune(program)


def _skip_what_changes_nothing(program: FlatJaxpr) -> None:
    """Readers of a product with 1, or of something joined to nothing, read the other operand."""
    same: dict[int, Atom] = {}
    kept: list[Op] = []
    for op in program.ops:
        op = replace(op, ins=tuple(same.get(atom, atom) if isinstance(atom, int) else atom for atom in op.ins))
        other = _the_same(program, op)
        if other is None:
            kept.append(op)
        else:
            same[op.outs[0]] = other
    program.ops = kept
    program.outputs = [same.get(atom, atom) if isinstance(atom, int) else atom for atom in program.outputs]


def _the_same(program: FlatJaxpr, op: Op) -> Atom | None:
    if op.name == "concatenate":
        parts = [atom for atom in op.ins if 0 not in program.aval(atom).shape]
        return parts[0] if len(parts) == 1 and len(op.ins) > 1 else None
    if op.name != "mul":
        return None
    for one, other in (op.ins, op.ins[::-1]):
        if isinstance(one, Constant) and not one.aval.shape and one.value == 1:
            made = program.avals[op.outs[0]]
            return other if (made.shape, made.dtype) == _form(program, other) else None
    return None


def _form(program: FlatJaxpr, atom: Atom) -> tuple[Any, Any]:
    aval = program.aval(atom)
    return aval.shape, aval.dtype


@dataclass(frozen=True)
class _Spelled:
    """An idiom that ends with some operation: its name, operands and parameters."""

    name: str
    ins: tuple[Atom, ...]
    params: Mapping[str, Any]


class _Finder:
    """Reads a program backwards from operations with which idioms end."""

    def __init__(self, program: FlatJaxpr) -> None:
        self._program = program
        self._makers = {value: op for op in program.ops for value in op.outs}
        self._readers: dict[int, list[Op]] = {}
        for op in program.ops:
            for atom in op.ins:
                if isinstance(atom, int):
                    self._readers.setdefault(atom, []).append(op)
        self._results = {atom for atom in program.outputs if isinstance(atom, int)}

    def replace_all(self) -> None:
        """An idiom stands where its last operation stood, and gives that one's result."""
        ops: list[Op] = []
        for op in self._program.ops:
            found = self._narrow(op) or self._norm(op) or self._rotation(op)
            ops.append(op if found is None else replace(op, name=found.name, ins=found.ins, params=found.params))
        self._program.ops = ops

    def _narrow(self, op: Op) -> _Spelled | None:
        """An idiom in fp32 between a conversion from a narrow type and one back: the call makes both itself."""
        if op.name != "convert_element_type" or not isinstance(op.ins[0], int):
            return None
        inner = self._makers.get(op.ins[0])
        if inner is None or self._readers[op.ins[0]] != [op] or op.ins[0] in self._results:
            return None
        found = self._norm(inner) or self._rotation(inner)
        if found is None:
            return None
        narrow, x = self._program.avals[op.outs[0]].dtype, found.ins[0]
        converted = self._made(x, "convert_element_type")
        if self._program.aval(x).dtype != narrow and converted is not None:
            x = converted.ins[0]
        return replace(found, ins=(x, *found.ins[1:])) if self._program.aval(x).dtype == narrow else None

    def _norm(self, op: Op) -> _Spelled | None:
        """`x * sqrt(1 / (mean(square(x)) + eps)) * scale`, as models.layers.Norm writes it."""
        if op.name != "mul" or not isinstance(op.ins[0], int):
            return None
        scaled, scale = self._makers.get(op.ins[0]), op.ins[1]
        if scaled is None or scaled.name != "mul":
            return None
        x, root = scaled.ins
        inverse = self._made(self._made_from(root, "sqrt"), "div")
        if inverse is None or not _is(inverse.ins[0], 1):
            return None
        shifted = self._made(inverse.ins[1], "add")
        mean = None if shifted is None else self._made(shifted.ins[0], "div")
        if shifted is None or mean is None or not all(isinstance(each.ins[1], Constant) for each in (shifted, mean)):
            return None
        total = self._made(self._behind_views(mean.ins[0]), "reduce_sum")
        if total is None or self._made_from(total.ins[0], "square") != x:
            return None
        shape, axes = self._program.aval(x).shape, sorted(total.params["axes"])
        normed = shape[len(shape) - len(axes) :]
        if axes != list(range(len(shape) - len(axes), len(shape))) or not _is(mean.ins[1], math.prod(normed)):
            return None
        weight = self._without_zero(self._behind_views(scale))
        if self._program.aval(weight).shape != normed:
            return None
        eps = shifted.ins[1]
        assert isinstance(eps, Constant)
        return _Spelled("rms_norm", (x, weight), {"eps": float(eps.value)})

    def _rotation(self, op: Op) -> _Spelled | None:
        """`concatenate(x cos - y sin, y cos + x sin)` of the halves of heads, as backends.rotation.rotate writes it."""
        if op.name != "concatenate" or len(op.ins) != 2:
            return None
        left, right = self._made(op.ins[0], "sub"), self._made(op.ins[1], "add")
        if left is None or right is None:
            return None
        products = [self._made(atom, "mul") for atom in (*left.ins, *right.ins)]
        pairs = [product.ins for product in products if product is not None]
        if len(pairs) != 4:
            return None
        (first, cos), (second, sin), (second_, cos_), (first_, sin_) = pairs
        if (first_, second_) != (first, second):
            return None
        angles = [self._behind_views(atom) for atom in (cos, sin, cos_, sin_)]
        if angles[:2] != angles[2:] or any(len(self._program.aval(angle).shape) != 2 for angle in angles):
            return None
        lower, upper = self._slice_of(first), self._slice_of(second)
        if lower is None or upper is None:
            return None
        (x, low, middle), (other, from_, high) = lower, upper
        shape = self._program.aval(x).shape
        if other != x or len(shape) != 3 or (low, middle, high - middle) != (0, from_, middle):
            return None
        if op.params["dimension"] != 2 or self._program.aval(angles[0]).shape != (shape[0], middle):
            return None
        return _Spelled("rotate", (x, *angles[:2]), {"width": high})

    def _slice_of(self, atom: Atom) -> tuple[Atom, int, int] | None:
        """What a half was cut out of, along the last axis, and where; conversions of the half are looked through."""
        converted = self._made(atom, "convert_element_type")
        cut = self._made(atom if converted is None else converted.ins[0], "slice")
        if cut is None or cut.params["strides"] is not None:
            return None
        shape = self._program.aval(cut.ins[0]).shape
        starts, limits = cut.params["start_indices"], cut.params["limit_indices"]
        if any(starts[:-1]) or tuple(limits[:-1]) != shape[:-1]:
            return None
        return cut.ins[0], starts[-1], limits[-1]

    def _made(self, atom: Atom | None, name: str) -> Op | None:
        """The operation that made a value, if it is of this name."""
        op = self._makers.get(atom) if isinstance(atom, int) else None
        return op if op is not None and op.name == name else None

    def _made_from(self, atom: Atom, name: str) -> Atom | None:
        op = self._made(atom, name)
        return None if op is None else op.ins[0]

    def _behind_views(self, atom: Atom) -> Atom:
        """What a value shows, through operations that only spread it."""
        while isinstance(atom, int) and atom in self._makers and self._makers[atom].name in _VIEWS:
            atom = self._makers[atom].ins[0]
        return atom

    def _without_zero(self, atom: Atom) -> Atom:
        """A scale to which 0 was added, converted from what it is stored in: what it is stored in."""
        added = self._made(atom, "add")
        if added is not None and _is(added.ins[1], 0):
            atom = added.ins[0]
            converted = self._made(atom, "convert_element_type")
            return atom if converted is None else converted.ins[0]
        return atom


def _is(atom: Atom, number: float) -> bool:
    return isinstance(atom, Constant) and not atom.aval.shape and float(atom.value) == number


class Rotation(torch.nn.Module):
    """Rotates the first `width` entries of each head by angles that all layers of a step share.

    Args:
        dtype: of the result; computed in fp32.
    """

    def __init__(self, width: int, dtype: DType) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype
        self._of: tuple[Tensor, Tensor] | None = None
        self._turns: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, N, H], cos and sin [T, width / 2]."""
        if self._of is None or self._turns is None or self._of[0] is not cos or self._of[1] is not sin:
            self._of = cos, sin
            self._turns = torch.cat((cos, cos), dim=-1)[:, None], torch.cat((-sin, sin), dim=-1)[:, None]
        cosines, sines = self._turns
        y = x[..., : self.width].to(torch.float32)
        return torch.addcmul(y * cosines, torch.roll(y, self.width // 2, dims=-1), sines).to(self.dtype)


def _rms_norm(eqn: Equation, x: Value, weight: Value) -> Value:
    run, given = torch.nn.functional.rms_norm, [eqn.dtype(aval) for aval in eqn.ins]
    if given[0] == given[1]:  # computed in fp32, whatever that is
        return run(x, eqn.ins[1].shape, weight, eqn.params["eps"])
    wide = run(x.to(torch.float32), eqn.ins[1].shape, weight.to(torch.float32), eqn.params["eps"])
    return wide.to(eqn.dtype())


def _rotate(eqn: Equation, x: Value, cos: Value, sin: Value) -> Value:
    return eqn.call_module(Rotation(eqn.params["width"], eqn.dtype()), (x, cos, sin))


def _searchsorted(eqn: Equation, table: Value, sought: Value) -> Value:
    if not eqn.reads_values:  # compilers know comparisons, and tables have an entry for each row of a batch
        wide = sought.unsqueeze(-1)
        return (table <= wide if eqn.params["right"] else table < wide).sum(dim=-1).to(eqn.dtype())
    return torch.searchsorted(table, sought, right=eqn.params["right"], out_int32=eqn.dtype() == torch.int32)


RULES: dict[str, Rule] = {
    "rms_norm": Rule(_rms_norm),
    "rotate": Rule(_rotate),
    "searchsorted": Rule(_searchsorted),
    "silu": Rule(lambda eqn, x: torch.nn.functional.silu(x)),
}
