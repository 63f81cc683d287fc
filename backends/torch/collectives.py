"""What processes that run one program together tell each other, by torch.distributed."""

from typing import Any

from .names import Tensor, Value, torch
from .rules import Equation, Rule


class Sum(torch.nn.Module):
    """The sum over a group, on each of its processes.

    Args:
        group: torch.distributed's.
        part: which of how many parts of an axis is kept (axis, part, parts); None keeps all. gloo has no operation that
            sends less.
    """

    def __init__(self, group: Any, part: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.group, self.part = group, part

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        sums = tuple(x.clone(memory_format=torch.contiguous_format) for x in xs)
        for x in sums:
            torch.distributed.all_reduce(x, group=self.group)
        if self.part is None:
            return sums
        axis, part, parts = self.part
        return tuple(x.chunk(parts, dim=axis)[part].clone() for x in sums)


class Gather(torch.nn.Module):
    """The parts of a group, joined along an axis, or stacked there."""

    def __init__(self, group: Any, size: int, axis: int, *, stacked: bool) -> None:
        super().__init__()
        self.group, self.size, self.axis, self.stacked = group, size, axis, stacked

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x, group=self.group)
        return (torch.stack if self.stacked else torch.cat)(parts, dim=self.axis)


def _axes(eqn: Equation, name: str) -> tuple[str, ...] | None:
    """The axes along which processes talk; None where there is no rule for what is asked."""
    given = eqn.params[name]
    axes = given if isinstance(given, tuple) else (given,)
    if eqn.ranks is None or eqn.params.get("axis_index_groups") is not None or not eqn.ranks.ordered(axes):
        return None
    return axes


def _sum(eqn: Equation, *xs: Value) -> Value:
    axes = _axes(eqn, "axes")
    if axes is None or eqn.ranks is None:
        return NotImplemented
    sums = eqn.call_module(Sum(eqn.ranks.group(axes)), xs)
    return tuple(sums[number] for number in range(len(xs)))


def _scattered_sum(eqn: Equation, x: Value) -> Value:
    axes = _axes(eqn, "axis_name")
    if axes is None or eqn.ranks is None or not eqn.params["tiled"]:
        return NotImplemented
    part = eqn.params["scatter_dimension"], eqn.ranks.place(axes), eqn.ranks.size(axes)
    return eqn.call_module(Sum(eqn.ranks.group(axes), part), (x,))[0]


def _gather(eqn: Equation, x: Value) -> Value:
    axes = _axes(eqn, "axis_name")
    if axes is None or eqn.ranks is None:
        return NotImplemented
    size, axis, stacked = eqn.ranks.size(axes), eqn.params["all_gather_dimension"], not eqn.params["tiled"]
    return eqn.call_module(Gather(eqn.ranks.group(axes), size, axis, stacked=stacked), (x,))


def _index(eqn: Equation) -> Value:
    axes = _axes(eqn, "axis_name")
    if axes is None or eqn.ranks is None:
        return NotImplemented
    return torch.tensor(eqn.ranks.place(axes), dtype=eqn.dtype(), device=eqn.device)


RULES: dict[str, Rule] = {
    "psum": Rule(_sum),
    "reduce_scatter": Rule(_scattered_sum),
    "all_gather": Rule(_gather),
    "axis_index": Rule(_index),
}
