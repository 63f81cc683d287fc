"""The parallel loop runs every chunk once, whatever the threads do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Int
from llvmlite import ir

from distaff.backends.cpu.ffi import Frame, handler, register
from distaff.backends.cpu.jit import I32, I64, POINTER, VOID, function
from distaff.backends.cpu.threads import parallel_for


@pytest.fixture(scope="module")
def target() -> str:
    """A custom call of (x [N]) -> [N]: chunk i adds x[0] to element i, x[0] times over, so that chunks take long."""
    module = ir.Module("distaff_cpu_threads_test")
    body, code = function(module, "count.chunk", VOID, [POINTER, I64])
    job, chunk = body.args
    out = code.at(code.read(POINTER, job), code.times(chunk, 4))
    times = code.read(I64, job, 8)

    def once(_: ir.Value) -> None:
        code.atomic_rmw("add", out, ir.Constant(I32, 1), "monotonic")

    code.loop(times, once)
    code.ret_void()

    def handle(frame: Frame) -> None:
        code, x, out = frame.code, frame.argument(0), frame.result(0)
        size = x.size(0)
        nothing = ir.Constant(ir.IntType(8), 0), code.times(size, 4), ir.Constant(ir.IntType(1), 0)
        code.intrinsic("llvm.memset.p0.i64", VOID, out.data, *nothing)
        job = code.stack(16)
        code.write(out.data, job, 0)
        code.write(code.sext(code.read(I32, x.data), I64), job, 8)
        code.call(parallel_for(module), [frame.pointer, size, code.address(body), job])

    handler(module, "count", handle)
    return register(module, ["count"])["count"]


def chunks(target: str, x: Int[Array, "N"]) -> Int[Array, "N"]:
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("times", [1, 5000])
def test_every_chunk_runs_once(target: str, count: int, times: int) -> None:
    np.testing.assert_array_equal(chunks(target, jnp.full(count, times, jnp.int32)), times)


def test_loops_one_behind_the_other_do_not_mix(target: str) -> None:
    @jax.jit
    def many(x: Int[Array, "N"]) -> Int[Array, "N"]:
        def body(_: Int[Array, ""], total: Int[Array, "N"]) -> Int[Array, "N"]:
            return total + chunks(target, x)

        return jax.lax.fori_loop(0, 500, body, jnp.zeros_like(x))

    np.testing.assert_array_equal(many(jnp.full(37, 3, jnp.int32)), 1500)
