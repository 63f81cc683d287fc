"""Loops, branches and attention: operations that hold programs of their own, or write into memory.

Each becomes a module that the graph calls. Predicates are read on the host; where the device is the host that is free,
elsewhere each turn of a `while` and each `cond` waits for the device once. What was collected by then is sent first: or
a turn's graph would hold those of the turns before it, and each number of turns would be compiled anew.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..base import RaggedIndex
from ..errors import UnsupportedError
from .alias_analysis import SHARED, Effect, loop_views
from .attention import Attention
from .attention_static import StaticAttention
from .dtypes import torch_dtype
from .flat_jaxpr import Aval, Op, place_of
from .lowered import GraphBuilder, Lowered
from .names import Module, Tensor, Value, torch

NAMES = ("scan", "while", "cond", "reduce", "ragged_attention")
_CACHE = 3  # of ragged_attention's operands


@dataclass(frozen=True)
class _Scan:
    body: Lowered
    num_consts: int
    num_carry: int


@dataclass(frozen=True)
class _While:
    test: Lowered
    body: Lowered
    test_consts: int
    body_consts: int


class Scan(torch.nn.Module):
    """Runs the body for each slice of the `xs`."""

    def __init__(
        self, body: Module, num_consts: int, num_carry: int, length: int, *, reverse: bool, ys: Sequence[Aval],
        device: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body, self.length, self.reverse = body, length, reverse
        self.first, self.last = num_consts, num_consts + num_carry
        self.num_carry, self.device = num_carry, device
        self.ys = [(aval.shape, torch_dtype(aval.dtype)) for aval in ys]

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        consts, carry, xs = args[: self.first], args[self.first : self.last], args[self.last :]
        if self.length == 0:
            return (*carry, *(torch.zeros(shape, dtype=dtype, device=self.device) for shape, dtype in self.ys))
        slices = list(zip(*(x.unbind(0) for x in xs), strict=True)) if xs else [()] * self.length
        columns: list[list[Tensor]] = [[] for _ in self.ys]
        for part in reversed(slices) if self.reverse else slices:
            out = self.body(*consts, *carry, *part)
            carry = out[: self.num_carry]
            for column, y in zip(columns, out[self.num_carry :], strict=True):
                column.append(y)
        return (*carry, *(torch.stack(column[::-1] if self.reverse else column) for column in columns))


class While(torch.nn.Module):
    """Runs the body as long as the test says so."""

    def __init__(
        self, test: Module, body: Module, test_consts: int, body_consts: int, cut: Callable[[], None] | None
    ) -> None:
        super().__init__()
        self.test, self.body, self.cut = test, body, cut
        self.test_consts, self.first = test_consts, test_consts + body_consts

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        test, body, carry = args[: self.test_consts], args[self.test_consts : self.first], args[self.first :]
        while read(self.test(*test, *carry)[0], self.cut):
            carry = self.body(*body, *carry)
        return carry


class Cond(torch.nn.Module):
    """Runs one of the branches."""

    def __init__(self, branches: Sequence[Module], cut: Callable[[], None] | None) -> None:
        super().__init__()
        self.cut = cut
        self.branches = torch.nn.ModuleList(branches)

    def forward(self, which: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        number = min(max(int(read(which, self.cut)), 0), len(self.branches) - 1)
        return self.branches[number](*args)


def read(number: Tensor, cut: Callable[[], None] | None) -> bool | int:
    """A number on the host, behind a cut."""
    if cut is not None:
        cut()
    return number.item()


class Reduce(torch.nn.Module):
    """Combines along axes by halves, so that a combination that is no known one takes few steps."""

    def __init__(self, body: Module, axes: Sequence[int]) -> None:
        super().__init__()
        self.body, self.axes = body, sorted(axes)

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor]:
        kept = [axis for axis in range(x.dim()) if axis not in self.axes]
        x = x.permute((*kept, *self.axes)).flatten(len(kept))
        if x.shape[-1] == 0:
            return (start.expand(x.shape[:-1]).clone(),)
        while (size := x.shape[-1]) > 1:
            half = size // 2
            joined = self.body(x[..., :half], x[..., half : 2 * half])[0]
            x = torch.cat((joined, x[..., 2 * half :]), dim=-1) if size % 2 else joined
        return (self.body(start.expand(x.shape[:-1]), x[..., 0])[0],)


def inner_jaxprs(op: Op) -> list[Any]:
    """The programs that an operation holds."""
    match op.name:
        case "scan":
            return [op.params["jaxpr"]]
        case "while":
            return [op.params["cond_jaxpr"], op.params["body_jaxpr"]]
        case "cond":
            return list(op.params["branches"])
        case "reduce":
            return [op.params["jaxpr"]]
    return []


def prepare(builder: GraphBuilder, number: int, op: Op) -> None:
    """Builds the programs inside an operation."""
    from .graph import lower

    target = builder.target
    match op.name:
        case "scan":
            consts, carry, _ = (len(list(part)) for part in op.params["ft_in"].update(range(len(op.ins))).unpack())
            body = lower(op.params["jaxpr"], target, given=range(consts, consts + carry), is_body=True, carry=consts)
            builder.bodies[number] = _Scan(body, consts, carry)
        case "while":
            test_consts, consts = op.params["cond_nconsts"], op.params["body_nconsts"]
            num_carry = len(op.ins) - test_consts - consts
            body = lower(
                op.params["body_jaxpr"], target, given=range(consts, consts + num_carry), is_body=True, carry=consts
            )
            test = lower(op.params["cond_jaxpr"], target, is_body=True)
            builder.bodies[number] = _While(test, body, test_consts, consts)
        case "reduce":
            builder.bodies[number] = lower(op.params["jaxpr"], target, is_body=True)
        case "cond":
            builder.bodies[number] = tuple(lower(branch, target, is_body=True) for branch in op.params["branches"])


def scratch_inside(held: Any) -> int:
    """The bytes that the programs inside an operation take: those of one turn, of the largest branch."""
    match held:
        case _Scan():
            return held.body.scratch
        case _While():
            return max(held.body.scratch, held.test.scratch)
        case Lowered():
            return held.scratch
        case _:
            return max(branch.scratch for branch in held)


def effect(builder: GraphBuilder, number: int, op: Op) -> Effect | None:
    """What such an operation does to memory; None for others."""
    held: Any = builder.bodies.get(number)
    match op.name:
        case "reduce":
            return Effect(views=(range(len(op.ins)),) * len(op.outs), repeats=range(len(op.outs)))
        case "ragged_attention":
            held = range(_CACHE, _CACHE + len(op.outs) - 1)
            return Effect(views=(None, *({place} for place in held)), writes=set(held))
        case "scan":
            runs = op.params["length"] > 0
            return _loop_effect(held.body, 0, held.num_consts, held.num_carry, len(op.outs), runs=runs)
        case "while":
            return _loop_effect(held.body, held.test_consts, held.body_consts, len(op.outs), len(op.outs), runs=False)
        case "cond":
            return _effect([set().union(*(branch.views[place] for branch in held)) for place in range(len(op.outs))], 1)
    return None


def _effect(seen: Sequence[Collection[int]], shift: int, writes: Collection[int] = ()) -> Effect:
    """Of results that look at these inputs of the programs inside, which are the operation's from `shift` on."""
    views = tuple({place + shift for place in of if place != SHARED} if of else None for of in seen)
    return Effect(views, writes, repeats={place for place, of in enumerate(seen) if SHARED in of})


def _loop_effect(body: Lowered, shift: int, first: int, num_carry: int, num_outs: int, *, runs: bool) -> Effect:
    """Of a loop whose body's inputs are the operation's from `shift` on, carries from `first` on."""
    carries = range(first, first + num_carry)
    closed = loop_views({place: body.views[place - first] for place in carries}, runs=runs)
    made = [frozenset[int]()] * (num_outs - num_carry)
    writes = {place + shift for place in body.writes if place in carries}
    return _effect([*(closed[place] for place in carries), *made], shift, writes)


def emit(builder: GraphBuilder, number: int, op: Op) -> tuple[Value, ...] | None:
    """Records such an operation; None for others."""
    if op.name not in NAMES:
        return None
    if op.name == "ragged_attention":
        return _attention(builder, number, op)
    held = builder.bodies[number]
    if op.name == "reduce" and len(op.ins) != 2:
        raise UnsupportedError(f"primitive reduce of several operands, at {place_of(op)}: torch backends lack it")
    values = [builder.value(atom) for atom in op.ins]
    written: set[int] = set()
    match op.name:
        case "scan":
            carries = range(held.num_consts, held.num_consts + held.num_carry)
            written = {place for place in held.body.writes if place in carries}
            ys = [builder.program.avals[value] for value in op.outs[held.num_carry :]]
            module: Module = Scan(
                held.body.module, held.num_consts, held.num_carry, op.params["length"],
                reverse=op.params["reverse"], ys=ys, device=builder.target.device,
            )  # fmt: skip
        case "while":
            written = {place + held.test_consts for place in held.body.writes if place >= held.body_consts}
            cut = builder.target.cut
            module = While(held.test.module, held.body.module, held.test_consts, held.body_consts, cut)
        case "reduce":
            module = Reduce(held.module, op.params["dimensions"])
        case _:
            module = Cond([branch.module for branch in held], builder.target.cut)
    for place in written - builder.known.writable[number]:
        values[place] = builder.fresh(values[place])
    result = builder.call_module(module, values)
    return tuple(result[place] for place in range(len(op.outs)))


def _attention(builder: GraphBuilder, number: int, op: Op) -> tuple[Value, ...]:
    q, k, v, cache, layer, index, sinks = jax.tree.unflatten(op.params["structure"], range(len(op.ins)))
    assert isinstance(index, RaggedIndex)
    held = jax.tree.leaves(cache)
    if held[0] != _CACHE or not (builder.target.reads_values or cache == _CACHE):
        raise UnsupportedError(
            f"a cache with scales of its own, at {place_of(op)}: on devices whose numbers the host does not see torch "
            "backends keep plain numbers"
        )
    spec, longest, fused = op.params["spec"], index.max_query_len, builder.target.attention
    with_sinks, masked = sinks is not None, index.mask is not None
    if builder.target.reads_values:
        scaled = len(held) > 1
        module: Module = Attention(
            spec, sinks=with_sinks, mask=masked, max_query_len=longest, fused=fused, scaled=scaled
        )  # fmt: skip
    else:
        module = StaticAttention(spec, sinks=with_sinks, mask=masked, max_query_len=longest, fused=fused)
    places = [q, k, v, *held, layer, index.page_table, index.query_starts, index.kv_lens]
    places += [place for place in (sinks, index.mask) if place is not None]
    values = [builder.value(op.ins[place]) for place in places]
    for place in set(held) - builder.known.writable[number]:
        values[place] = builder.fresh(values[place])
    return builder.call_module(module, values), *(values[place] for place in held)
