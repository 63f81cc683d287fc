"""FLOPs and bytes of compiled programs, against what can be counted by hand."""

from collections.abc import Callable
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from distaff.backends.compiler.hlo import Module, parse_module
from distaff.backends.compiler.hlo_flops import matmul_flops
from distaff.backends.compiler.hlo_runs import executions
from distaff.backends.compiler.hlo_traffic import hbm_bytes, hbm_traffic
from distaff.backends.compiler.lowering import compile_lowered, lower, make_mesh

TOPOLOGIES = [
    pytest.param("v6e:2x2", marks=pytest.mark.skipif(not find_spec("libtpu"), reason="extra `tpu`")),
    pytest.param("h100:1", marks=pytest.mark.skipif(not find_spec("jax_cuda12_plugin"), reason="extra `aot-cuda`")),
]


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def _compiled(function: Callable[..., jax.Array], args: list[jax.ShapeDtypeStruct], topology: str) -> Module:
    lowered = lower(function, args, make_mesh(topology), donate=(0,) if len(args) == 3 else ())
    return parse_module(compile_lowered(lowered, topology).as_text() or "")


def _scan(x: jax.Array, weights: jax.Array) -> jax.Array:
    return lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), x, weights)[0]


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k)), v)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    ("function", "args", "multiplications"),
    [
        (lambda a, b: a @ b, [_array(256, 512), _array(512, 128)], 256 * 512 * 128),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [_array(8, 64, 32), _array(8, 32, 16)], 8 * 64 * 32 * 16),
        (_attention, [_array(2, 256, 8, 64)] * 3, 2 * 2 * 8 * 256 * 256 * 64),
        (_scan, [_array(256, 512), _array(9, 512, 512)], 9 * 256 * 512 * 512),
    ],
)
def test_flops_of_matmuls(
    topology: str, function: Callable[..., jax.Array], args: list[jax.ShapeDtypeStruct], multiplications: int
) -> None:
    module = _compiled(function, args, topology)
    assert matmul_flops(module, executions(module)) == 2 * multiplications


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda x, w: lax.conv(x, w, (1, 1), "SAME"), [_array(2, 64, 16, 16), _array(128, 64, 3, 3)]),
        (lambda x, w: lax.conv(x, w, (2, 1), "VALID"), [_array(2, 64, 17, 16), _array(128, 64, 3, 5)]),
        (lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"), [_array(2, 16, 16, 64), _array(3, 3, 64, 128)]),
    ],
)
def test_flops_of_convolutions(function: Callable[..., jax.Array], args: list[jax.ShapeDtypeStruct]) -> None:
    pytest.importorskip("libtpu")
    compiled = compile_lowered(lower(function, args, make_mesh("v6e:2x2")), "v6e:2x2")
    module = parse_module(compiled.as_text() or "")
    counted = (compiled.cost_analysis() or {})["flops"]
    assert matmul_flops(module, executions(module)) == pytest.approx(counted, rel=0.01)  # XLA counts additions, too


def _update(cache: jax.Array, rows: jax.Array, place: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice(cache, rows, (place[0].astype(jnp.int32), 0))


@pytest.mark.parametrize(
    ("function", "args", "num_bytes"),
    [
        (lambda a, b: a + b, [_array(8192, 8192)] * 2, 3 * 8192 * 8192 * 2),
        (lambda a, b: a @ b, [_array(128, 8192), _array(8192, 16384)], (1 + 8 * 16 + 2) * 2**20 * 2),
        (_scan, [_array(16, 8192), _array(9, 8192, 8192)], 9 * 8192 * 8192 * 2),
        (_update, [_array(65536, 8192), _array(16, 8192), _array(1)], 2 * 16 * 8192 * 2),
    ],
)
def test_bytes_between_the_chip_and_hbm(
    function: Callable[..., jax.Array], args: list[jax.ShapeDtypeStruct], num_bytes: int
) -> None:
    pytest.importorskip("libtpu")
    module = _compiled(function, args, "v6e:2x2")
    assert hbm_traffic(module, executions(module)) == pytest.approx(num_bytes, rel=0.001)


def test_gpus_copy_the_weights_that_a_scan_slices() -> None:
    pytest.importorskip("jax_cuda12_plugin")
    module = _compiled(_scan, [_array(16, 8192), _array(9, 8192, 8192)], "h100:1")
    moved = hbm_traffic(module, executions(module))
    assert moved == pytest.approx(3 * 9 * 8192 * 8192 * 2, rel=0.05)  # read, written and read again


def test_memory_on_the_chip_is_not_hbm() -> None:
    assert hbm_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert hbm_bytes("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}") == 0
    assert hbm_bytes("(f32[2]{0}, f32[4]{0:S(1)}, u32[])") == 12
