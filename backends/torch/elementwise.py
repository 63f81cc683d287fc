"""Arithmetic, comparison and logic, one number at a time."""

import operator
from collections.abc import Callable
from typing import Any

from .names import Value, torch
from .rules import Equation, Rule, bits_of, flip, is_bool, is_carried, is_float, is_unsigned, shifted_right, widen


def _unary(function: Callable[[Value], Value]) -> Rule:
    return Rule(lambda eqn, x: function(x))


def _binary(function: Callable[[Value, Value], Value]) -> Rule:
    return Rule(lambda eqn, x, y: function(x, y), scalars=True)


def _div(eqn: Equation, x: Value, y: Value) -> Value:
    return x / y if is_float(eqn.out) else _whole(eqn, x, y)[0]


def _rem(eqn: Equation, x: Value, y: Value) -> Value:
    return torch.fmod(_tensor(eqn, x), y) if is_float(eqn.out) else _whole(eqn, x, y)[1]


def _whole(eqn: Equation, x: Value, y: Value) -> tuple[Value, Value]:
    """Quotient towards zero and remainder. As in XLA, dividing by zero gives all bits set, and the dividend as rest;
    torch would raise. In int64, where the least int32 divided by -1 has room."""
    aval, dtype = eqn.out, eqn.dtype()
    x, y = widen(_tensor(eqn, x), aval), widen(y, aval)
    by_zero = y == 0
    divisor = torch.where(by_zero, 1, y) if not isinstance(y, int) else (y or 1)
    quotient, rest = torch.div(x, divisor, rounding_mode="trunc"), torch.fmod(x, divisor)
    if not isinstance(y, int):
        quotient, rest = torch.where(by_zero, -1, quotient), torch.where(by_zero, x, rest)
    elif y == 0:
        quotient, rest = torch.full_like(x, -1), x
    return quotient.to(dtype), rest.to(dtype)


def _extreme(eqn: Equation, x: Value, y: Value, of: Callable[[Value, Value], Value], both: Any) -> Value:
    if is_bool(eqn.out):
        return both(x, y)
    x, y = (_tensor(eqn, value) for value in (x, y))
    return flip(of(flip(x, eqn.out), flip(y, eqn.out)), eqn.out)


def _max(eqn: Equation, x: Value, y: Value) -> Value:
    return _extreme(eqn, x, y, torch.maximum, operator.or_)


def _min(eqn: Equation, x: Value, y: Value) -> Value:
    return _extreme(eqn, x, y, torch.minimum, operator.and_)


def _clamp(eqn: Equation, low: Value, x: Value, high: Value) -> Value:
    return _min(eqn, _max(eqn, x, low), high)


def _tensor(eqn: Equation, value: Value) -> Value:
    return eqn.constant(value, eqn.out) if isinstance(value, bool | int | float) else value


def _compare(of: Callable[[Value, Value], Value]) -> Rule:
    def emit(eqn: Equation, x: Value, y: Value) -> Value:
        if is_unsigned(eqn.ins[0]):
            x, y = flip(x, eqn.ins[0]), flip(y, eqn.ins[0])
        return of(x, y)

    return Rule(emit, scalars=True)


def _not(eqn: Equation, x: Value) -> Value:
    return torch.logical_not(x) if is_bool(eqn.out) else torch.bitwise_not(x)


def _sign(eqn: Equation, x: Value) -> Value:
    if is_carried(eqn.out.dtype):
        return (x != 0).to(eqn.dtype())
    return torch.where(torch.isnan(x), x, torch.sign(x)) if is_float(eqn.out) else torch.sign(x)


def _round(eqn: Equation, x: Value) -> Value:
    if int(eqn.params["rounding_method"]) == 1:
        return torch.round(x)  # ties go to even numbers
    whole = torch.trunc(x)
    return torch.where(torch.abs(x - whole) >= 0.5, whole + torch.sign(x), whole)


def _integer_pow(eqn: Equation, x: Value) -> Value:
    exponent = eqn.params["y"]
    if exponent == 0:
        return torch.ones_like(x)
    power, square, left = None, x, abs(exponent)
    while left:  # as XLA does, so that the roundings are the same
        if left & 1:
            power = square if power is None else power * square
        left >>= 1
        if left:
            square = square * square
    assert power is not None
    return 1 / power if exponent < 0 else power


def _pow(eqn: Equation, x: Value, y: Value) -> Value:
    if not is_float(eqn.ins[1]):
        y = y.to(eqn.dtype())
    return torch.pow(x, y)


def _cbrt(x: Value) -> Value:
    return torch.copysign(torch.pow(torch.abs(x), 1 / 3), x)


def _select(eqn: Equation, which: Value, *cases: Value) -> Value:
    values = [_tensor(eqn, case) for case in cases]
    if isinstance(which, bool | int | float):
        return values[int(which)]
    if 0 < len(eqn.ins[0].shape) < len(eqn.out.shape):  # of random keys, which are pairs of words
        which = which.unsqueeze(-1)
    if is_bool(eqn.ins[0]):
        return torch.where(which, values[1], values[0])
    chosen = values[-1]
    for number in range(len(values) - 2, -1, -1):
        chosen = torch.where(which <= number, values[number], chosen)
    return chosen


def _shift_left(eqn: Equation, x: Value, by: Value) -> Value:
    width = bits_of(eqn.out)
    x = _tensor(eqn, x)
    if isinstance(by, int):
        return x << by if 0 <= by < width else torch.zeros_like(x)
    outside = (by < 0) | (by >= width)
    return torch.where(outside, 0, x << torch.where(outside, 0, by))


def _shift_right_logical(eqn: Equation, x: Value, by: Value) -> Value:
    width = bits_of(eqn.out)
    x = _tensor(eqn, x)
    if isinstance(by, int):
        if by == 0:
            return x
        if not 0 < by < width:
            return torch.zeros_like(x)
        return shifted_right(x, by) & (2 ** (width - by) - 1) if eqn.dtype() != torch.uint8 else x >> by
    outside = (by < 0) | (by >= width)
    wide = x.to(torch.int64) & (2**width - 1)
    return torch.where(outside, 0, wide >> torch.where(outside, 0, by).to(torch.int64)).to(eqn.dtype())


def _shift_right_arithmetic(eqn: Equation, x: Value, by: Value) -> Value:
    last = bits_of(eqn.out) - 1
    x = _tensor(eqn, x)
    if not isinstance(by, int):
        by = torch.where((by < 0) | (by > last), last, by)
    elif not 0 <= by <= last:
        by = last
    if eqn.dtype() == torch.uint8:  # whose bits count as those of a signed number, as XLA has it
        signed = by if isinstance(by, int) else by.view(torch.int8)
        return (x.view(torch.int8) >> signed).view(torch.uint8)
    return x >> by


RULES: dict[str, Rule] = {
    "add": _binary(operator.add),
    "add_any": _binary(operator.add),
    "sub": _binary(operator.sub),
    "mul": _binary(operator.mul),
    "div": Rule(_div, scalars=True),
    "rem": Rule(_rem, scalars=True),
    "max": Rule(_max, scalars=True),
    "min": Rule(_min, scalars=True),
    "clamp": Rule(_clamp, scalars=True),
    "pow": Rule(_pow),
    "integer_pow": Rule(_integer_pow),
    "square": _unary(lambda x: x * x),
    "neg": _unary(torch.neg),
    "abs": _unary(torch.abs),
    "sign": Rule(_sign),
    "floor": _unary(torch.floor),
    "ceil": _unary(torch.ceil),
    "round": Rule(_round),
    "is_finite": _unary(torch.isfinite),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "expm1": _unary(torch.expm1),
    "log": _unary(torch.log),
    "log1p": _unary(torch.log1p),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "tan": _unary(torch.tan),
    "asin": _unary(torch.asin),
    "acos": _unary(torch.acos),
    "atan": _unary(torch.atan),
    "sinh": _unary(torch.sinh),
    "cosh": _unary(torch.cosh),
    "tanh": _unary(torch.tanh),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "cbrt": _unary(_cbrt),
    "logistic": _unary(torch.sigmoid),
    "erf": _unary(torch.erf),
    "erfc": _unary(torch.erfc),
    "erf_inv": _unary(torch.erfinv),
    "atan2": Rule(lambda eqn, x, y: torch.atan2(x, y)),
    "nextafter": Rule(lambda eqn, x, y: torch.nextafter(x, y)),
    "eq": _compare(operator.eq),
    "ne": _compare(operator.ne),
    "lt": _compare(operator.lt),
    "le": _compare(operator.le),
    "gt": _compare(operator.gt),
    "ge": _compare(operator.ge),
    "and": _binary(operator.and_),
    "or": _binary(operator.or_),
    "xor": _binary(operator.xor),
    "not": Rule(_not),
    "select_n": Rule(_select, scalars=True),
    "shift_left": Rule(_shift_left, scalars=True),
    "shift_right_logical": Rule(_shift_right_logical, scalars=True),
    "shift_right_arithmetic": Rule(_shift_right_arithmetic, scalars=True),
}
