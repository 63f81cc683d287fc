"""What processes that run one program together tell each other, by torch.distributed."""

from collections.abc import Sequence
from typing import Any

from .names import Tensor, Value, torch
from .rules import Equation, Rule


class Reduction(torch.nn.Module):
    """The sum over a group, or what is largest or smallest there, on each of its processes.

    Args:
        group: torch.distributed's.
        how: "SUM", "MAX" or "MIN".
        part: which of how many parts of an axis is kept (axis, part, parts); None keeps all. gloo has no operation that
            sends less.
    """

    def __init__(self, group: Any, how: str = "SUM", part: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.group, self.part = group, part
        self.how = getattr(torch.distributed.ReduceOp, how)

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        reduced = tuple(x.clone(memory_format=torch.contiguous_format) for x in xs)
        for x in reduced:
            torch.distributed.all_reduce(x, op=self.how, group=self.group)
        if self.part is None:
            return reduced
        axis, part, parts = self.part
        return tuple(x.chunk(parts, dim=axis)[part].clone() for x in reduced)


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


class Exchange(torch.nn.Module):
    """Of each process' parts along an axis the ones that are this process', joined along an axis, or stacked there."""

    def __init__(self, group: Any, size: int, split: int, axis: int, *, stacked: bool) -> None:
        super().__init__()
        self.group, self.size, self.split, self.axis, self.stacked = group, size, split, axis, stacked

    def forward(self, x: Tensor) -> Tensor:
        given = torch.stack(x.unbind(self.split) if self.stacked else x.chunk(self.size, dim=self.split))
        got = torch.empty_like(given)
        torch.distributed.all_to_all_single(got, given, group=self.group)
        return (torch.stack if self.stacked else torch.cat)(got.unbind(0), dim=self.axis)


class Permutation(torch.nn.Module):
    """What another process of a group sends to this one; zeros where none does.

    Args:
        to, source: the processes that this one sends to and gets from, as torch.distributed numbers them all; None:
            nobody.
        itself: whether what this one has stays here.
    """

    def __init__(self, group: Any, to: int | None, source: int | None, *, itself: bool) -> None:
        super().__init__()
        self.group, self.to_rank, self.source, self.itself = group, to, source, itself

    def forward(self, x: Tensor) -> Tensor:
        if self.itself:
            return x.clone(memory_format=torch.contiguous_format)
        x, got = x.contiguous(), torch.zeros_like(x, memory_format=torch.contiguous_format)
        both = (torch.distributed.isend, x, self.to_rank), (torch.distributed.irecv, got, self.source)
        calls = [torch.distributed.P2POp(call, what, rank, self.group) for call, what, rank in both if rank is not None]
        for call in torch.distributed.batch_isend_irecv(calls) if calls else ():
            call.wait()
        return got


def _axes(eqn: Equation, name: str) -> tuple[str, ...] | None:
    """The axes along which processes talk; None where there is no rule for what is asked."""
    given = eqn.params[name]
    axes = given if isinstance(given, tuple) else (given,)
    if eqn.ranks is None or eqn.params.get("axis_index_groups") is not None or not eqn.ranks.ordered(axes):
        return None
    return axes


def _reduction(how: str) -> Rule:
    def emit(eqn: Equation, *xs: Value) -> Value:
        axes = _axes(eqn, "axes")
        if axes is None or eqn.ranks is None:
            return NotImplemented
        reduced = eqn.call_module(Reduction(eqn.ranks.group(axes), how), xs)
        return tuple(reduced[number] for number in range(len(xs)))

    return Rule(emit)


def _scattered_sum(eqn: Equation, x: Value) -> Value:
    axes = _axes(eqn, "axis_name")
    if axes is None or eqn.ranks is None or not eqn.params["tiled"]:
        return NotImplemented
    part = eqn.params["scatter_dimension"], eqn.ranks.place(axes), eqn.ranks.size(axes)
    return eqn.call_module(Reduction(eqn.ranks.group(axes), part=part), (x,))[0]


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


def _exchange(eqn: Equation, x: Value) -> Value:
    axes = _axes(eqn, "axis_name")
    if axes is None or eqn.ranks is None:
        return NotImplemented
    split, axis, stacked = eqn.params["split_axis"], eqn.params["concat_axis"], not eqn.params["tiled"]
    exchange = Exchange(eqn.ranks.group(axes), eqn.ranks.size(axes), split, axis, stacked=stacked)
    return eqn.call_module(exchange, (x,))


def _permute(eqn: Equation, x: Value) -> Value:
    axes = _axes(eqn, "axis_name")
    if axes is None or eqn.ranks is None:
        return NotImplemented
    group, here, members = eqn.ranks.group(axes), eqn.ranks.place(axes), eqn.ranks.members(axes)
    pairs: Sequence[tuple[int, int]] = eqn.params["perm"]
    to = next((members[target] for source, target in pairs if source == here), None)
    source = next((members[source] for source, target in pairs if target == here), None)
    return eqn.call_module(Permutation(group, to, source, itself=(here, here) in pairs), (x,))


RULES: dict[str, Rule] = {
    "psum": _reduction("SUM"),
    "pmax": _reduction("MAX"),
    "pmin": _reduction("MIN"),
    "reduce_scatter": Rule(_scattered_sum),
    "all_gather": Rule(_gather),
    "all_to_all": Rule(_exchange),
    "ppermute": Rule(_permute),
    "axis_index": Rule(_index),
}
