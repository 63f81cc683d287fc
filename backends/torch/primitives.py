"""Every primitive that has a rule, and what each does to memory."""

from . import collectives, conversions, elementwise, idioms, indexing, ordering, products, random, reductions, shapes
from .alias_analysis import Effect
from .flat_jaxpr import FlatJaxpr, Op
from .rules import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **conversions.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **ordering.RULES,
    **indexing.RULES,
    **products.RULES,
    **random.RULES,
    **idioms.RULES,
    **collectives.RULES,
}


def effect_of_rule(program: FlatJaxpr, op: Op) -> Effect:
    """What the rule of an operation does to memory."""
    rule, results = RULES[op.name], len(op.outs)
    aval = program.aval(op.ins[0]) if op.ins else None
    if aval is not None and indexing.writes(op.name, aval.shape):
        return Effect(views=({0},), writes={0})
    views = None if rule.fresh or _copies(program, op) else range(len(op.ins))
    return Effect(views=(views,) * results, repeats=range(results) if op.name == "broadcast_in_dim" else ())


def _copies(program: FlatJaxpr, op: Op) -> bool:
    """Whether a gather reads at several places, which torch copies from; one place is a view."""
    if op.name != "gather":
        return False
    return len(program.aval(op.ins[1]).shape) > 1 and bool(op.params["dimension_numbers"].start_index_map)
