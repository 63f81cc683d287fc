"""Sums, extremes and running totals along axes."""

from collections.abc import Callable
from typing import Any

from .names import Value, torch
from .rules import Equation, Rule, flip, is_bool


def _sum(eqn: Equation, x: Value) -> Value:
    axes = _axes(eqn)
    return torch.sum(x, dim=axes, dtype=eqn.dtype()) if axes else x


def _prod(eqn: Equation, x: Value) -> Value:
    for axis in sorted(_axes(eqn), reverse=True):
        x = torch.prod(x, dim=axis, dtype=eqn.dtype())
    return x


def _extreme(of: Callable[..., Value], both: Callable[..., Value]) -> Rule:
    def emit(eqn: Equation, x: Value) -> Value:
        axes = _axes(eqn)
        if not axes:
            return x
        if is_bool(eqn.out):
            return both(x, axes)
        return flip(of(flip(x, eqn.out), dim=axes), eqn.out)

    return Rule(emit, fresh=False)


def _all(eqn: Equation, x: Value) -> Value:
    return torch.all(x, dim=_axes(eqn)) if is_bool(eqn.out) else NotImplemented


def _any(eqn: Equation, x: Value) -> Value:
    return torch.any(x, dim=_axes(eqn)) if is_bool(eqn.out) else NotImplemented


def _arg(of: Callable[..., Value]) -> Rule:
    def emit(eqn: Equation, x: Value) -> Value:
        (axis,) = eqn.params["axes"]
        x = x.to(torch.uint8) if is_bool(eqn.ins[0]) else flip(x, eqn.ins[0])
        return of(x, dim=axis).to(eqn.dtype())

    return Rule(emit)


def _running(of: Callable[..., Value]) -> Rule:
    def emit(eqn: Equation, x: Value) -> Value:
        axis = eqn.params["axis"]
        if 0 in eqn.out.shape:  # torch_xla has none of nothing
            return x
        x = torch.flip(x, (axis,)) if eqn.params["reverse"] else x
        total = of(eqn, x, axis)
        return torch.flip(total, (axis,)) if eqn.params["reverse"] else total

    return Rule(emit, fresh=False)


def _axes(eqn: Equation) -> tuple[int, ...]:
    return tuple(int(axis) for axis in eqn.params["axes"])  # vmap leaves numpy's numbers among them


def _best(of: Callable[..., Any]) -> Callable[[Equation, Value, int], Value]:
    return lambda eqn, x, axis: flip(of(flip(x, eqn.out), dim=axis)[0], eqn.out)


RULES: dict[str, Rule] = {
    "reduce_sum": Rule(_sum, fresh=False),
    "reduce_prod": Rule(_prod, fresh=False),
    "reduce_max": _extreme(torch.amax, lambda x, axes: torch.any(x, dim=axes)),
    "reduce_min": _extreme(torch.amin, lambda x, axes: torch.all(x, dim=axes)),
    "reduce_and": Rule(_all),
    "reduce_or": Rule(_any),
    "argmax": _arg(torch.argmax),
    "argmin": _arg(torch.argmin),
    "cumsum": _running(lambda eqn, x, axis: torch.cumsum(x, dim=axis, dtype=eqn.dtype())),
    "cumprod": _running(lambda eqn, x, axis: torch.cumprod(x, dim=axis, dtype=eqn.dtype())),
    "cummax": _running(_best(torch.cummax)),
    "cummin": _running(_best(torch.cummin)),
    "cumlogsumexp": _running(lambda eqn, x, axis: torch.logcumsumexp(x, dim=axis)),
}
