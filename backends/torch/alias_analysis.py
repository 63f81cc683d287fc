"""Alias analysis: which values of a program may be overwritten by the operation that reads them last.

JAX's values never change; a KV cache that is copied for each token would be of no use, though. A value's memory may be
written where it belongs to the program (it was given away to it, or an operation made it) and nobody who still wants
the old value looks at it, through whatever view.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from .flat_jaxpr import Constant, FlatJaxpr, Op

type Roots = frozenset[int]
"""The values whose memory a value may look at. `SHARED` among them: some of it is seen several times."""

SHARED = -1


@dataclass(frozen=True)
class Effect:
    """What an operation does to memory.

    Args:
        views: for each result the inputs whose memory it may look at; None where all of its memory is new.
        writes: inputs that it writes into, if it may.
        repeats: the results that may look at one place several times, or at memory that is not the program's to write.
    """

    views: tuple[Collection[int] | None, ...]
    writes: Collection[int] = ()
    repeats: Collection[int] = ()


@dataclass
class Ownership:
    """What may be written, for each operation of a program by its number; and what each value looks at."""

    writable: dict[int, frozenset[int]] = field(default_factory=dict)
    roots: dict[int, Roots] = field(default_factory=dict)
    owned: set[int] = field(default_factory=set)

    def owns(self, value: int) -> bool:
        """Whether all that a value looks at belongs to the program."""
        return self.roots[value] <= self.owned

    def shares(self, value: int, others: Collection[int]) -> bool:
        """Whether one of the others looks at the same memory."""
        return any(self.roots[value] & self.roots[other] for other in others)


def analyse(program: FlatJaxpr, given: Collection[int], effect_of: Callable[[Op], Effect]) -> Ownership:
    """Follows memory through a program.

    Args:
        given: the inputs whose memory the caller gives away.
        effect_of: what an operation does.
    """
    known = Ownership()
    for value in (*program.inputs, *program.constants):
        known.roots[value] = frozenset((value,))
    known.owned.update(given)
    constant = set(program.constants)
    last = program.last_uses()
    alive: set[int] = {*program.inputs, *program.constants}
    for number, op in enumerate(program.ops):
        effect = effect_of(op)
        after = {value for value in alive if last.get(value, -1) > number}
        known.writable[number] = frozenset(
            place for place in effect.writes if _free(known, op, place, after)
        )  # fmt: skip
        is_constant = all(isinstance(atom, Constant) or atom in constant for atom in op.ins)
        for place, (value, views) in enumerate(zip(op.outs, effect.views, strict=True)):
            known.roots[value] = _seen(known, op, value, views, repeats=place in effect.repeats)
            if is_constant:
                constant.add(value)
            elif views is None:
                known.owned.add(value)
        alive = after | {value for value in op.outs if last.get(value, -1) > number}
    return known


def _free(known: Ownership, op: Op, place: int, after: Collection[int]) -> bool:
    value = op.ins[place]
    if isinstance(value, Constant) or not known.owns(value):
        return False
    beside = [atom for number, atom in enumerate(op.ins) if number != place and isinstance(atom, int)]
    return not known.shares(value, after) and not known.shares(value, beside)


def _seen(known: Ownership, op: Op, value: int, views: Collection[int] | None, *, repeats: bool) -> Roots:
    if views is None:
        return frozenset((value,))
    seen: set[int] = {SHARED} if repeats else set()
    for place in views:
        atom = op.ins[place]
        seen |= {value} if isinstance(atom, Constant) else known.roots[atom]
    # A result that looks at no input is the program's constant.
    return frozenset(seen or {value})


def loop_views(seen: Mapping[int, Collection[int]], *, runs: bool) -> dict[int, set[int]]:
    """The inputs of a loop that each carry may look at when it ends.

    Args:
        seen: for each carry, named by its input, the inputs of the body that it looks at after one turn.
        runs: whether there is one turn at least.
    """
    views = {carry: set(of) if runs else {carry, *of} for carry, of in seen.items()}
    while True:
        more = {carry: of.union(*(seen[place] for place in of if place in seen)) for carry, of in views.items()}
        if more == views:
            return views
        views = more
