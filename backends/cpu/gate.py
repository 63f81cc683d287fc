"""The gate of a feed-forward layer in one pass, where XLA takes three times as long: most of it for exponentials."""

from functools import cache

import jax
from jaxtyping import BFloat16
from llvmlite import ir

from .attention_math import LOG2_E, constant, exp2, largest, load, rounded
from .ffi import Frame, handler, register
from .jit import I64, POINTER, VOID, Code, Value, function
from .threads import parallel_for

_LANES = 16
_CHUNK = 1 << 14
"""Numbers of one chunk of the parallel loop: about 5 us."""
_BYTES = 2


def silu_gate(gate: BFloat16[jax.Array, "T F"], up: BFloat16[jax.Array, "T F"]) -> BFloat16[jax.Array, "T F"]:
    """silu(gate) * up in fp32, rounded once."""
    return jax.ffi.ffi_call(_targets()["silu_gate"], jax.ShapeDtypeStruct(gate.shape, gate.dtype))(gate, up)


def emitted() -> tuple[ir.Module, list[str]]:
    """The kernel, and the name of its handler."""
    module = ir.Module("distaff_cpu_gate")
    body, code = function(module, "silu_gate.chunk", VOID, [POINTER, I64])
    job, chunk = body.args
    gate, up, out = (code.read(POINTER, job, 8 * at) for at in range(3))
    size = code.read(I64, job, 24)
    first = code.times(chunk, _CHUNK)
    last = code.least(code.plus(first, _CHUNK), size)
    whole = code.plus(first, code.times(code.sdiv(code.sub(last, first), code.i64(_LANES)), _LANES))

    def some(lanes: int, at: Value) -> None:
        where = code.times(at, _BYTES)
        x, y = (load(code, "bfloat16", lanes, code.at(each, where)) for each in (gate, up))
        code.write(rounded(code, code.fmul(_silu(code, x), y), "bfloat16"), code.at(out, where), align=_BYTES)

    code.loop(whole, lambda at: some(_LANES, at), start=first, step=_LANES)
    code.loop(last, lambda at: some(1, at), start=whole)
    code.ret_void()

    def handle(frame: Frame) -> None:
        code, gate = frame.code, frame.argument(0)
        size = code.times(gate.size(0), gate.size(1))
        job = code.stack(32)
        for at, value in enumerate((gate.data, frame.argument(1).data, frame.result(0).data, size)):
            code.write(value, job, 8 * at)
        code.call(parallel_for(module), [frame.pointer, code.ceil_div(size, _CHUNK), code.address(body), job])

    handler(module, "silu_gate", handle)
    return module, ["silu_gate"]


@cache
def _targets() -> dict[str, str]:
    return register(*emitted())


def _silu(code: Code, x: Value) -> Value:
    """x / (1 + exp(-x)); beyond -88, where that is nothing in bfloat16 but for x itself, as at -88."""
    lanes = x.type.count
    power = exp2(code, code.fmul(largest(code, x, constant(-88.0, lanes)), constant(-LOG2_E, lanes)))
    return code.fdiv(x, code.fadd(power, constant(1.0, lanes)))
