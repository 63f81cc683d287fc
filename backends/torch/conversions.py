"""From type to type."""

from .dtypes import is_carried, torch_dtype
from .flat_jaxpr import Aval
from .names import Value, torch
from .rules import Equation, Rule, is_bool, is_float, is_unsigned, widen


def _convert(eqn: Equation, x: Value) -> Value:
    return convert(x, eqn.ins[0], eqn.out)


def convert(x: Value, given: Aval, wanted: Aval) -> Value:
    """The values of x in another type, as XLA's ConvertElementType gives them."""
    if given.dtype == wanted.dtype:
        return x
    dtype = torch_dtype(wanted.dtype)
    if is_float(given) and not is_float(wanted) and not is_bool(wanted):
        # Out of range is the nearest that there is, and NaN is 0; torch leaves both open.
        low, high = _limits(wanted)
        exact = torch.nan_to_num(x.to(torch.float64), nan=0.0, posinf=float(high), neginf=float(low))
        return torch.clamp(exact, low, high).to(torch.int64).to(dtype)
    if is_carried(given.dtype) and not is_bool(wanted):
        return widen(x, given).to(dtype)
    return x.to(dtype)


def _limits(aval: Aval) -> tuple[int, int]:
    bits = 8 * torch_dtype(aval.dtype).itemsize
    if is_unsigned(aval):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _bitcast(eqn: Equation, x: Value) -> Value:
    given, wanted = (torch_dtype(aval.dtype) for aval in (eqn.ins[0], eqn.out))
    if given == wanted:
        return x
    if given.itemsize == wanted.itemsize:
        return x.view(wanted)
    if given.itemsize > wanted.itemsize:  # a new last axis of the parts
        return x.unsqueeze(-1).contiguous().view(wanted)
    return x.contiguous().view(wanted).squeeze(-1)


def _reduce_precision(eqn: Equation, x: Value) -> Value:
    bits = eqn.params["exponent_bits"], eqn.params["mantissa_bits"]
    narrow = {(8, 7): torch.bfloat16, (5, 10): torch.float16}.get(bits)
    if narrow is None or bits == _FORMATS.get(str(eqn.out.dtype)):
        return x if bits == _FORMATS.get(str(eqn.out.dtype)) else NotImplemented
    return x.to(narrow).to(eqn.dtype())


_FORMATS = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}

RULES: dict[str, Rule] = {
    "convert_element_type": Rule(_convert, fresh=False),
    "bitcast_convert_type": Rule(_bitcast, fresh=False),
    "reduce_precision": Rule(_reduce_precision, fresh=False),
}
