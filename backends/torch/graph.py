"""A jaxpr as a torch.fx graph: every equation's rule records the torch operations that stand for it."""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr

from ..errors import UnsupportedError
from . import control_flow
from .alias_analysis import SHARED, Effect, Ownership, analyse
from .dtypes import from_numpy, is_key, torch_dtype
from .flat_jaxpr import Atom, Constant, FlatJaxpr, Op, flatten_jaxpr, place_of
from .idioms import find_idioms, whole_call
from .keys import with_words
from .lowered import Lowered, Target
from .names import Module, Value, fx, torch
from .narrowing import narrow_products
from .primitives import RULES, effect_of_rule
from .rules import Equation, copied, literal
from .scratch import scratch_bytes


class _Tracer(fx.proxy.GraphAppendingTracer):
    """Records calls; tensors that are known already become attributes of the module."""

    def __init__(self, graph: Any, root: Module) -> None:
        super().__init__(graph)
        self.root_module = root
        self._held: dict[int, str] = {}
        self._kept: list[Any] = []  # so that no number of an object is used twice

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return self.graph.get_attr(self.hold(a))
        if isinstance(a, np.integer):
            return int(a)
        return super().create_arg(a)

    def hold(self, tensor: Any) -> str:
        """The name under which the module has a constant."""
        if id(tensor) not in self._held:
            name = f"constant_{len(self._held)}"
            self._held[id(tensor)] = name
            self._kept.append(tensor)
            self.root_module.register_buffer(name, tensor, persistent=False)
        return self._held[id(tensor)]


class Builder:
    """Builds the graph of one flat jaxpr.

    Args:
        program: what is built.
        target: what it is built for; constants are made there.
        given: the inputs that the program may write into.
        carry: for the body of a loop, the input that the first result becomes in the next turn.
    """

    def __init__(
        self, program: FlatJaxpr, target: Target, given: Collection[int] = (), carry: int | None = None
    ) -> None:
        self.program, self.target, self._carry = program, target, carry
        self.device = target.device
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.tracer = _Tracer(self.graph, self.root)
        self.bodies: dict[int, Any] = {}  # of loops and branches, by the number of the operation
        self.known = Ownership()
        self._numbers = {id(op): number for number, op in enumerate(program.ops)}
        for number, op in enumerate(program.ops):
            control_flow.prepare(self, number, op)
        self.known = analyse(program, [program.inputs[place] for place in given], self._effect)
        self._values: dict[int, Value] = {}

    def build(self, *, is_body: bool) -> Lowered:
        """The module; a body's results may look at what it was given, a whole program's belong to the caller."""
        for place, value in enumerate(self.program.inputs):
            self._values[value] = fx.Proxy(self.graph.placeholder(f"input_{place}"), self.tracer)
        for value, array in self.program.constants.items():
            self._values[value] = from_numpy(_words_of(array)).to(self.device)
        last = self.program.last_uses()
        for number, op in enumerate(self.program.ops):
            results = self._emit(number, op)
            self._values.update(zip(op.outs, results, strict=True))
            for atom in (*op.ins, *op.outs):
                if isinstance(atom, int) and last.get(atom, -1) <= number:
                    self._values.pop(atom, None)
        outputs = [self._output(place, atom, is_body=is_body) for place, atom in enumerate(self.program.outputs)]
        self.graph.output(self.tracer.create_arg(tuple(outputs)))
        module = fx.GraphModule(self.root, self.graph, class_name="Step")
        inside = {number: control_flow.scratch_inside(held) for number, held in self.bodies.items()}
        scratch = scratch_bytes(self.program, self.known, inside)
        return Lowered(module, self.program, self._written(), self._views(), scratch)

    def value(self, atom: Atom) -> Value:
        """A tensor or proxy."""
        if isinstance(atom, Constant):
            number = literal(atom.value, atom.aval)
            return torch.tensor(number, dtype=torch_dtype(atom.aval.dtype), device=self.device)
        return self._values[atom]

    def call(self, function: Any, *values: Any) -> Any:
        """Records a call as one node."""
        return self.tracer.create_proxy("call_function", function, tuple(values), {})

    def call_module(self, module: Module, values: Sequence[Value]) -> Any:
        """Records a call of a module, which becomes part of the graph's."""
        name = f"{type(module).__name__.lower()}_{len(list(self.root.children()))}"
        self.root.add_module(name, module)
        return self.tracer.create_proxy("call_module", name, tuple(values), {})

    def fresh(self, value: Value) -> Value:
        """A copy, made anew in each run."""
        return self.call(copied, value)

    def _effect(self, op: Op) -> Effect:
        effect = control_flow.effect(self, self._numbers[id(op)], op)
        return effect_of_rule(self.program, op) if effect is None else effect

    def _emit(self, number: int, op: Op) -> tuple[Value, ...]:
        structured = control_flow.emit(self, number, op)
        if structured is not None:
            return structured
        rule = RULES[op.name]
        ins = tuple(self.program.aval(atom) for atom in op.ins)
        outs = tuple(self.program.avals[value] for value in op.outs)
        if not rule.keys and any(aval.key for aval in (*ins, *outs)):
            worded = with_words(op, ins, outs)
            if worded is None:
                raise UnsupportedError(f"primitive {op.name} of random keys, at {place_of(op)}: torch backends lack it")
            op, ins = worded, tuple(self.program.aval(atom) for atom in worded.ins)
        may_write, reads = self.known.writable[number], self.target.reads_values
        ranks = self.target.ranks
        eqn = Equation(op, ins, outs, self.device, reads, self.call, self.call_module, may_write, ranks)
        numbers = rule.scalars and any(isinstance(atom, int) for atom in op.ins)
        values = [
            literal(atom.value, atom.aval) if numbers and isinstance(atom, Constant) else self.value(atom)
            for atom in op.ins
        ]
        result = rule.emit(eqn, *values)
        if result is NotImplemented:
            raise UnsupportedError(
                f"primitive {op.name} with {dict(op.params)}, at {place_of(op)}: "
                "torch backends have no rule for this form"
            )
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        if rule.fresh and not eqn.may_write:  # or who writes into the result would write into an operand
            results = tuple(self.fresh(one) if any(one is given for given in values) else one for one in results)
        return results

    def _output(self, place: int, atom: Atom, *, is_body: bool) -> Value:
        value = self.value(atom)
        # What the next turn, or the next call, writes into has to be its own.
        given = is_body and (self._carry is None or self._carry + place not in self._written())
        return value if given or self._is_alone(place) else self.fresh(value)

    def _is_alone(self, place: int) -> bool:
        """Whether a result's memory belongs to the program, and is no other result's."""
        atom = self.program.outputs[place]
        others = [
            other for number, other in enumerate(self.program.outputs) if number != place and isinstance(other, int)
        ]
        return isinstance(atom, int) and self.known.owns(atom) and not self.known.shares(atom, others)

    def _written(self) -> frozenset[int]:
        """The inputs whose memory some operation writes, in this turn of a loop or in a later one."""
        touched: set[int] = set()
        for number, op in enumerate(self.program.ops):
            for place in self.known.writable[number]:
                atom = op.ins[place]
                assert isinstance(atom, int)
                touched |= self.known.roots[atom]
        places = {value: place for place, value in enumerate(self.program.inputs)}
        written = {places[value] for value in touched if value in places}
        while self._carry is not None:
            # What becomes a carry that is written is written in the next turn.
            carries = {place - self._carry for place in written if place >= self._carry}
            carried = [self.program.outputs[place] for place in carries if place < len(self.program.outputs)]
            seen = frozenset().union(*(self.known.roots[atom] for atom in carried if isinstance(atom, int)))
            more = written | {places[value] for value in seen if value in places}
            if more == written:
                break
            written = more
        return frozenset(written)

    def _views(self) -> tuple[frozenset[int], ...]:
        places = {value: place for place, value in enumerate(self.program.inputs)}
        seen = [None if isinstance(atom, Constant) else self.known.roots[atom] for atom in self.program.outputs]
        seers = Counter(chain.from_iterable(values or () for values in seen))
        views = []
        for values in seen:
            unnamed = {value for value in values or (SHARED,) if value not in places}
            # Memory that the program made is a result's alone, or whoever writes into it has to mind the others.
            shared = any(value not in self.known.owned or seers[value] > 1 for value in unnamed)
            named = frozenset(places[value] for value in values or () if value in places)
            views.append(named | {SHARED} if shared else named)
        return tuple(views)


def lower(
    jaxpr: Jaxpr, target: Target, *, given: Collection[int] = (), is_body: bool = False, carry: int | None = None
) -> Lowered:
    """Builds the graph of a jaxpr.

    Args:
        target: what it is built for.
        given: the inputs that it may write into.
        is_body: whether it is a part of another graph.
        carry: as for Builder.

    Raises:
        UnsupportedError: names each primitive that has no rule, and where it was written.
    """
    program = flatten_jaxpr(jaxpr, whole_call, parts=target.ranks is not None)
    if not is_body:
        check_primitives(program)
    narrow_products(program)
    if target.reads_values:
        find_idioms(program)
    with torch.no_grad():
        return Builder(program, target, given, carry).build(is_body=is_body)


def check_primitives(program: FlatJaxpr) -> None:
    """Raises:
    UnsupportedError: some primitive has no rule; all are named, with the places that use them first.
    """
    lacking: dict[str, str] = {}

    def look(part: FlatJaxpr) -> None:
        for op in part.ops:
            for inner in control_flow.inner_jaxprs(op):
                look(flatten_jaxpr(inner))
            if op.name not in RULES and op.name not in control_flow.NAMES:
                lacking.setdefault(op.name, place_of(op))

    look(program)
    if lacking:
        told = "\n  ".join(f"{name}, at {place}" for name, place in lacking.items())
        raise UnsupportedError(f"torch backends have no rule for these primitives of JAX:\n  {told}")


def _words_of(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and is_key(array.dtype):
        array = jax.random.key_data(array)
    return np.array(array)
