"""What a rule is: torch code for one primitive, run once, when the graph is built.

Values are fx proxies, so that what torch is told to do is recorded; what depends on constants alone is a real tensor
and is computed there and then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dtypes import is_carried, scalar, torch_dtype
from .flat_jaxpr import Aval, Op
from .names import DType, Value, torch
from .ranks import Ranks


@dataclass(frozen=True)
class Equation:
    """An operation as its rule sees it.

    `ins` and `outs` are shapes and types; `device` is where constants are made; `reads_values` says whether the host
    may look at numbers there, so that shapes can depend on them; `may_write` are the inputs whose memory the rule may
    use for its result; `ranks` are the processes that run the program together (None: this one alone);
    `call(function, *values)` records a call of a function of ours as one node, `call_module(module, values)` one of a
    module.
    """

    op: Op
    ins: tuple[Aval, ...]
    outs: tuple[Aval, ...]
    device: str
    reads_values: bool
    call: Callable[..., Value]
    call_module: Callable[..., Value]
    may_write: frozenset[int] = frozenset()
    ranks: Ranks | None = None

    @property
    def params(self) -> Mapping[str, Any]:
        return self.op.params

    @property
    def out(self) -> Aval:
        return self.outs[0]

    def dtype(self, aval: Aval | None = None) -> DType:
        """The torch type that carries an aval, the first result's by default."""
        return torch_dtype((aval or self.out).dtype)

    def constant(self, value: Any, aval: Aval) -> Value:
        """A number as a tensor without axes."""
        return torch.tensor(value, dtype=torch_dtype(aval.dtype), device=self.device)


@dataclass(frozen=True)
class Rule:
    """`emit(equation, *values)` gives the result, or a tuple of the results.

    `scalars`: literals come as Python numbers where another operand is a tensor. `fresh`: results share no memory with
    the operands; one that is an operand is copied. `keys`: it deals with random keys itself.
    """

    emit: Callable[..., Any]
    scalars: bool = False
    fresh: bool = True
    keys: bool = False


def copied(x: Value) -> Value:
    """A copy. Called through `Equation.call` it is made anew in each run."""
    return x.clone(memory_format=torch.contiguous_format)


def reshaped(x: Value, given: Sequence[int], wanted: Sequence[int]) -> Value:
    """x of the shape `given` in the shape `wanted`: calls that change nothing are not recorded, since each takes the
    host a microsecond or two, and a layer has dozens."""
    return x if tuple(given) == tuple(wanted) else x.reshape(tuple(wanted))


def permuted(x: Value, order: Sequence[int]) -> Value:
    """x with its axes in this order, which is not recorded where they stand so."""
    return x if tuple(order) == tuple(range(len(order))) else x.permute(tuple(order))


def literal(value: Any, aval: Aval) -> bool | int | float:
    """A literal as a Python number."""
    return scalar(value, aval.dtype)


def flip(x: Value, aval: Aval) -> Value:
    """Bits of an unsigned number such that signed comparison orders them; anything else as it is."""
    if not is_carried(aval.dtype):
        return x
    lowest = -(2 ** (8 * _size(aval) - 1))
    return x ^ lowest


def widen(x: Value, aval: Aval) -> Value:
    """A whole number as int64, unsigned ones by their value."""
    if isinstance(x, int):
        return x % 2 ** (8 * _size(aval)) if is_carried(aval.dtype) else x
    wide = x.to(torch.int64)
    return wide & (2 ** (8 * _size(aval)) - 1) if is_carried(aval.dtype) else wide


def bits_of(aval: Aval) -> int:
    """The width of a whole number."""
    return 8 * _size(aval)


def is_unsigned(aval: Aval) -> bool:
    return str(aval.dtype).startswith("uint")


def is_float(aval: Aval) -> bool:
    return "float" in str(aval.dtype)


def is_bool(aval: Aval) -> bool:
    return str(aval.dtype) == "bool"


def _size(aval: Aval) -> int:
    return torch_dtype(aval.dtype).itemsize


def shifted_right(x: Value, by: int) -> Value:
    """x >> by for signed numbers. torch_xla divides, which rounds towards 0: without the bits that fall out there is
    nothing to round."""
    return (x & -(1 << by)) >> by
