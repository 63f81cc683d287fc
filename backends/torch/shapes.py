"""Moving, repeating and joining: nothing is computed here."""

import math
import operator

from .names import Value, torch
from .rules import Equation, Rule, is_bool, literal, permuted, reshaped


def _same(eqn: Equation, *values: Value) -> Value:
    return values[0] if len(values) == 1 else values


def _reshape(eqn: Equation, x: Value, *rest: Value) -> Value:
    dimensions = eqn.params.get("dimensions")
    if dimensions is not None:
        return x.permute(tuple(dimensions)).reshape(eqn.out.shape)
    return reshaped(x, eqn.ins[0].shape, eqn.out.shape)


def _broadcast(eqn: Equation, x: Value) -> Value:
    shape, kept = eqn.out.shape, eqn.params["broadcast_dimensions"]
    spread = [1] * len(shape)
    for size, axis in zip(eqn.ins[0].shape, kept, strict=True):
        spread[axis] = size
    x = reshaped(x, eqn.ins[0].shape, spread)
    return x if tuple(spread) == tuple(shape) else x.expand(shape)


def _slice(eqn: Equation, x: Value) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    return operator.getitem(x, tuple(map(slice, starts, limits, strides)))


def _rev(eqn: Equation, x: Value) -> Value:
    return torch.flip(x, tuple(eqn.params["dimensions"]))


def _concatenate(eqn: Equation, *parts: Value) -> Value:
    return torch.cat(list(parts), dim=eqn.params["dimension"])


def _stack(eqn: Equation, *parts: Value) -> Value:
    return torch.stack(list(parts), dim=eqn.params["axis"])


def _unstack(eqn: Equation, x: Value) -> tuple[Value, ...]:
    return tuple(x.select(eqn.params["axis"], number) for number in range(len(eqn.outs)))


def _split(eqn: Equation, x: Value) -> tuple[Value, ...]:
    axis, parts, first = eqn.params["axis"], [], 0
    for size in eqn.params["sizes"]:
        parts.append(x.narrow(axis, first, size))
        first += size
    return tuple(parts)


def _pad(eqn: Equation, x: Value, fill: Value) -> Value:
    config = eqn.params["padding_config"]
    if any(inside for _, _, inside in config):
        return NotImplemented
    cuts = tuple(
        slice(max(-low, 0), size + min(high, 0)) for size, (low, high, _) in zip(eqn.ins[0].shape, config, strict=True)
    )
    inner = operator.getitem(x, cuts)
    pads = [side for low, high, _ in reversed(config) for side in (max(low, 0), max(high, 0))]
    if not any(pads):
        return inner
    constant = eqn.op.ins[1]
    if not isinstance(constant, int) and not is_bool(eqn.out):
        return torch.nn.functional.pad(inner, pads, value=literal(constant.value, eqn.ins[1]))
    inside = torch.nn.functional.pad(torch.ones_like(inner, dtype=torch.bool), pads, value=False)
    zeros = torch.nn.functional.pad(inner.to(torch.uint8) if is_bool(eqn.out) else inner, pads, value=0)
    return torch.where(inside, zeros.to(eqn.dtype()), fill)


def _iota(eqn: Equation, *extent: Value) -> Value:
    shape, axis = eqn.out.shape, eqn.params["dimension"]
    numbers = torch.arange(shape[axis] if shape else 1, device=eqn.device).to(eqn.dtype())
    return numbers.reshape([-1 if number == axis else 1 for number in range(len(shape))]).expand(shape)


def _empty(eqn: Equation) -> Value:
    return torch.zeros(math.prod(eqn.out.shape), dtype=eqn.dtype(), device=eqn.device).reshape(eqn.out.shape)


RULES: dict[str, Rule] = {
    **{
        name: Rule(_same, fresh=False, keys=True)
        for name in (
            "copy", "stop_gradient", "optimization_barrier", "device_put", "name", "sharding_constraint",
            "random_wrap", "random_unwrap", "random_clone",
        )
    },
    "reshape": Rule(_reshape, fresh=False),
    "squeeze": Rule(lambda eqn, x: reshaped(x, eqn.ins[0].shape, eqn.out.shape), fresh=False),
    "broadcast_in_dim": Rule(_broadcast, fresh=False),
    "transpose": Rule(lambda eqn, x: permuted(x, eqn.params["permutation"]), fresh=False),
    "slice": Rule(_slice, fresh=False),
    "rev": Rule(_rev),
    "concatenate": Rule(_concatenate),
    "stack": Rule(_stack),
    "unstack": Rule(_unstack, fresh=False),
    "split": Rule(_split, fresh=False),
    "pad": Rule(_pad, fresh=False),
    "iota": Rule(_iota, fresh=False),
    "empty": Rule(_empty),
}  # fmt: skip
