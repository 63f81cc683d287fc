"""Arrays of random keys as arrays of words: what moves keys moves one more, last axis."""

from dataclasses import replace
from typing import Any

from .flat_jaxpr import Aval, Constant, Op

_UNCHANGED = (
    "concatenate",
    "stack",
    "unstack",
    "squeeze",
    "reshape",
    "rev",
    "split",
    "select_n",
)


def with_words(op: Op, ins: tuple[Aval, ...], outs: tuple[Aval, ...]) -> Op | None:
    """The operation on words that does what `op` does on keys; None where there is none."""
    params: dict[str, Any] = dict(op.params)
    rank = len(outs[0].shape) - 1  # of the array of keys that comes out
    match op.name:
        case "broadcast_in_dim":
            params["broadcast_dimensions"] = (*params["broadcast_dimensions"], rank)
        case "transpose":
            params["permutation"] = (*params["permutation"], rank)
        case "slice":
            params["start_indices"] = (*params["start_indices"], 0)
            params["limit_indices"] = (*params["limit_indices"], 2)
            params["strides"] = None if params["strides"] is None else (*params["strides"], 1)
        case "dynamic_slice":
            params["slice_sizes"] = (*params["slice_sizes"], 2)
            return replace(op, params=params, ins=(*op.ins, Constant(0, Aval((), "int32"))))
        case "gather":
            numbers = params["dimension_numbers"]
            params["dimension_numbers"] = numbers._replace(offset_dims=(*numbers.offset_dims, rank))
            params["slice_sizes"] = (*params["slice_sizes"], 2)
        case "scatter":
            numbers, last = params["dimension_numbers"], len(ins[2].shape) - 1
            params["dimension_numbers"] = numbers._replace(update_window_dims=(*numbers.update_window_dims, last))
        case name if name in _UNCHANGED:
            return op
        case _:
            return None
    return replace(op, params=params)
