"""Memory in pages of 2 MiB, where Linux gives them to those who ask (the setting `madvise`, which is the usual one).

A step reads all weights, and pages of the cache at random places. In pages of 4 KiB each of those costs a walk through
the tables of addresses, in a virtual machine through two: a decode step of 32 rows took 10 % longer.
"""

import ctypes
import math
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Num
from llvmlite import ir

from ..base import PyTree
from .ffi import Frame, handler, register
from .jit import I8, I32, I64, POINTER, VOID, Code, Value, function
from .threads import parallel_for

_PAGE, _SMALL_PAGE = 1 << 21, 1 << 12
_LEAST = 2 * _PAGE
"""Bytes of an array in which there is a large page."""
_MOST = 1 << 31
"""Bytes of an array that are worth the time: gathering takes half a second for some hundred MB."""
_HUGEPAGE, _COLLAPSE = 14, 25
"""Of madvise(2): new pages may be large; those that are there shall become so, now (Linux 6.1)."""


def zeros(shape: Sequence[int], dtype: DTypeLike) -> Num[Array, "..."]:
    """jnp.zeros in memory that becomes large pages when it is first written."""
    result = jax.ShapeDtypeStruct(tuple(shape), dtype)
    if sys.platform != "linux" or math.prod(shape) * result.dtype.itemsize < _LEAST:
        return jnp.zeros(shape, dtype)
    return jax.ffi.ffi_call(_zeros(len(shape), result.dtype.itemsize), result)()


def gathered(tree: PyTree) -> PyTree:
    """The same arrays; memory of those that are large is gathered into large pages if the system lets it."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and _LEAST <= leaf.nbytes <= _MOST:
            for part in leaf.addressable_shards:
                _gather(part.data.block_until_ready().unsafe_buffer_pointer(), part.data.nbytes)
    return tree


def _gather(start: int, num_bytes: int) -> None:
    """The system may refuse, and then all stays as it is."""
    first, last = -(-start // _PAGE) * _PAGE, (start + num_bytes) // _PAGE * _PAGE
    madvise = _madvise()
    if madvise is not None and first < last:
        for advice in (_HUGEPAGE, _COLLAPSE):
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


@cache
def _madvise() -> Any:
    """The system's call, None where there is none."""
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


@cache
def _zeros(rank: int, item_bytes: int) -> str:
    """The target of a custom call without operands: asks for large pages, and clears its result in parallel."""
    module = ir.Module("distaff_cpu_zeros")
    body, code = function(module, "zeros.chunk", VOID, [POINTER, I64])
    job, chunk = body.args
    first, size = code.times(chunk, _PAGE), code.read(I64, job, 8)
    _clear(code, code.at(code.read(POINTER, job), first), code.least(code.sub(size, first), _PAGE))
    code.ret_void()

    def handle(frame: Frame) -> None:
        code, result = frame.code, frame.result(0)
        size = code.i64(item_bytes)
        for axis in range(rank):
            size = code.times(size, result.size(axis))
        start = code.ptrtoint(result.data, I64)
        first = code.times(code.ceil_div(start, _SMALL_PAGE), _SMALL_PAGE)
        rest = code.sub(size, code.sub(first, start))
        code.intrinsic("madvise", I32, code.inttoptr(first, POINTER), rest, ir.Constant(I32, _HUGEPAGE))
        job = code.stack(16)
        code.write(result.data, job, 0)
        code.write(size, job, 8)
        code.call(parallel_for(module), [frame.pointer, code.ceil_div(size, _PAGE), code.address(body), job])

    handler(module, "zeros", handle)
    return register(module, ["zeros"])["zeros"]


def _clear(code: Code, target: Value, num_bytes: Value) -> None:
    code.intrinsic("llvm.memset.p0.i64", VOID, target, ir.Constant(I8, 0), num_bytes, ir.Constant(ir.IntType(1), 0))
