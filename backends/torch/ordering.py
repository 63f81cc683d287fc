"""Sorting, and the largest few: ties go to the smaller index, as JAX promises."""

from .flat_jaxpr import Aval
from .names import Value, torch
from .rules import Equation, Rule, flip, is_bool, is_float


def _sort(eqn: Equation, *operands: Value) -> tuple[Value, ...]:
    axis, count = eqn.params["dimension"], eqn.params["num_keys"]
    # By the last key first: each stable sort keeps the order of those before among equals.
    order: Value = None
    for number in range(count - 1, -1, -1):
        key = _sortable(operands[number], eqn.ins[number])
        if order is not None:
            key = torch.take_along_dim(key, order, dim=axis)
        step = torch.sort(key, dim=axis, stable=True)[1]
        order = step if order is None else torch.take_along_dim(order, step, dim=axis)
    return tuple(torch.take_along_dim(operand, order, dim=axis) for operand in operands)


def _sortable(x: Value, aval: Aval) -> Value:
    return x.to(torch.uint8) if is_bool(aval) else flip(x, aval)


def _top_k(eqn: Equation, x: Value) -> tuple[Value, Value]:
    """torch.topk leaves open which of equal values it takes, so the place is made part of what is compared."""
    aval, count = eqn.ins[0], eqn.params["k"]
    axis = eqn.params.get("axis", -1) % len(aval.shape)
    x, size = x.movedim(axis, -1), aval.shape[axis]
    place = torch.arange(size - 1, -1, -1, device=eqn.device)
    ranked = (ordered(x, aval) << 32) | place
    best = torch.topk(ranked, count, dim=-1)[0]
    ids = (size - 1) - (best & (2**32 - 1))
    values = torch.take_along_dim(x, ids, dim=-1)
    return values.movedim(-1, axis), ids.movedim(-1, axis).to(eqn.dtype(eqn.outs[1]))


def ordered(x: Value, aval: Aval) -> Value:
    """Whole numbers of 32 bits, as int64, in the order of x; NaN is the largest."""
    if not is_float(aval):
        return _sortable(x, aval).to(torch.int64)
    bits = x.to(torch.float32).view(torch.int32)
    # The bits of a negative number fall where the number rises.
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)


def _lt_to(eqn: Equation, x: Value, y: Value) -> Value:
    return ordered(x, eqn.ins[0]) < ordered(y, eqn.ins[1])


def _le_to(eqn: Equation, x: Value, y: Value) -> Value:
    return ordered(x, eqn.ins[0]) <= ordered(y, eqn.ins[1])


RULES: dict[str, Rule] = {
    "sort": Rule(_sort),
    "top_k": Rule(_top_k),
    "lt_to": Rule(_lt_to),  # in the order of all floats, where -0 comes before 0, and NaN last
    "le_to": Rule(_le_to),
}
