"""What the TPU compiler says of programs whose cost is known by hand."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec as P

from distaff.backends.compiler.report import CompileReport
from distaff.backends.errors import UsageError
from distaff.backends.kernel_work import KernelWork
from distaff.backends.static_cost import analyze

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")

GENERATIONS = ["v4:2x2x2", "v5e:2x4", "v5p:2x2x4", "v6e:2x2", "v7x:2x2x1"]
BLOCK = jax.ShapeDtypeStruct((1024, 256), jnp.float32)


def _add_kernel(x_ref: jax.Ref, y_ref: jax.Ref, out_ref: jax.Ref) -> None:
    out_ref[...] = x_ref[...] + y_ref[...]


def _add(x: jax.Array, y: jax.Array) -> jax.Array:
    block = pl.BlockSpec((128, 256), lambda i: (i, 0))
    return pl.pallas_call(
        _add_kernel, grid=(8,), in_specs=[block, block], out_specs=block, out_shape=BLOCK, name="add_blocks"
    )(x, y)


@pytest.mark.parametrize("topology", GENERATIONS)
def test_a_kernel_on_every_generation(topology: str) -> None:
    report = analyze(_add, (BLOCK, BLOCK), topology, work=KernelWork(hbm_bytes=3 * 2**20))
    (kernel,) = report.kernels
    (grid,) = kernel.loops
    assert kernel.name.startswith("add_blocks")
    assert kernel.bundles > grid.bundles > 128 * 256 // 1024 / 2
    assert (grid.trips, grid.known) == (8 + 2, True)
    assert kernel.spill_stores == 0 and kernel.mxu_busy == 0
    assert 0 < (kernel.vmem_bytes or 0) <= 6 * 128 * 256 * 4
    assert report.memory.arguments == 2 * 2**20 and report.memory.outputs == 2**20
    assert kernel.seconds == kernel.hbm_seconds


def test_a_kernel_in_a_scan_is_called_at_each_step() -> None:
    def steps(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (_add(carry, carry), None), x, length=12)[0]

    report = analyze(steps, (BLOCK,), "v6e:2x2")
    assert [kernel.calls for kernel in report.kernels] == [12]
    assert CompileReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_kernel_that_is_called_twice_is_told_of_twice() -> None:
    """The compiler makes it once, and prints one schedule. Its arrays are too large to be moved into fast memory, where
    its calls would be different programs."""
    many = jax.ShapeDtypeStruct((2**18, 256), jnp.float32)
    block = pl.BlockSpec((128, 256), lambda i: (i, 0))
    add = pl.pallas_call(
        _add_kernel, grid=(2**11,), in_specs=[block, block], out_specs=block, out_shape=many, name="add_blocks"
    )
    report = analyze(lambda x, y, z: (add(x, y), add(z, y)), (many, many, many), "v6e:2x2")
    first, second = report.kernels
    assert first.name != second.name and first.bundles == second.bundles > 0


def test_work_is_given_by_the_kernels_name() -> None:
    work = {"add_blocks": KernelWork(flops=1024 * 256)}
    assert analyze(_add, (BLOCK, BLOCK), "v6e:2x2", work=work).kernels[0].flops == 1024 * 256
    with pytest.raises(ValueError, match=r"no kernel is named subtract; the program has add_blocks\.\d"):
        analyze(_add, (BLOCK, BLOCK), "v6e:2x2", work={"subtract": KernelWork()})


@pytest.mark.parametrize("num_layers", [1, 3, 7])
def test_collectives_of_a_sharded_scan(num_layers: int) -> None:
    def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, w: (jax.lax.psum(carry @ w, "model"), None), x, weights)[0]

    def sharded(x: jax.Array, weights: jax.Array) -> jax.Array:
        specs = (P("data", None), P(None, None, None))
        return jax.shard_map(layers, in_specs=specs, out_specs=P("data", None), check_vma=False)(x, weights)

    report = analyze(
        sharded,
        (jax.ShapeDtypeStruct((256, 512), jnp.bfloat16), jax.ShapeDtypeStruct((num_layers, 512, 512), jnp.bfloat16)),
        "v6e:2x2",
        mesh_axes={"data": 2, "model": 2},
        in_specs=(P("data"), None),
    )
    assert report.num_devices == 4 and report.unknown_loops == 0
    assert [(c.op, c.replica_groups, c.num_bytes) for c in report.collectives] == [
        ("all-reduce", ((0, 1), (2, 3)), 128 * 512 * 2)
    ]
    assert sum(collective.count for collective in report.collectives) == num_layers
    assert report.memory.arguments == (128 * 512 + num_layers * 512 * 512) * 2


def test_sums_between_slices_are_sends() -> None:
    report = analyze(
        lambda x: jax.shard_map(lambda x: jax.lax.psum(x, "slice"), in_specs=P("slice"), out_specs=P())(x),
        (jax.ShapeDtypeStruct((16, 1024), jnp.float32),),
        "v5e:2x2",
        num_slices=2,
        mesh_axes={"slice": 2, "model": 4},
        in_specs=(P("slice"),),
    )
    assert {(c.op, c.between_slices, c.transfer, c.count) for c in report.collectives} == {
        ("send", True, "all-reduce", 1),
        ("recv", True, "all-reduce", 1),
    }
    assert {c.num_bytes for c in report.collectives} == {8 * 1024 * 4}


def test_a_mesh_larger_than_the_topology_is_refused() -> None:
    with pytest.raises(UsageError, match="a mesh of x=3 x y=2 takes 6 devices, v6e:2x2 has 4"):
        analyze(lambda x: x, (BLOCK,), "v6e:2x2", mesh_axes={"x": 3, "y": 2})


def test_collectives_on_gpus() -> None:
    pytest.importorskip("jax_cuda12_plugin", reason="the compiler for NVIDIA GPUs is in the extra `aot-cuda`")

    def layers(x: jax.Array) -> jax.Array:
        def layer(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            scattered = jax.lax.psum_scatter(carry, "model", scatter_dimension=0, tiled=True)
            gathered = jax.lax.all_gather(scattered, "model", axis=0, tiled=True)
            return jax.lax.all_to_all(gathered, "model", 0, 0, tiled=True), None

        return jax.lax.scan(layer, x, length=5)[0]

    report = analyze(
        lambda x: jax.shard_map(layers, in_specs=P("data"), out_specs=P("data"), check_vma=False)(x),
        (jax.ShapeDtypeStruct((256, 512), jnp.bfloat16),),
        "h100:8",
        mesh_axes={"data": 2, "model": 4},
        in_specs=(P("data"),),
    )
    groups = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert {(c.op, c.replica_groups, c.num_bytes, c.count) for c in report.collectives} == {
        ("reduce-scatter", groups, 128 * 512 * 2, 5),
        ("all-gather", groups, 128 * 512 * 2, 5),
        ("all-to-all", groups, 128 * 512 * 2, 5),
    }
    assert report.estimated_cycles is None and report.compiler.startswith("XLA for cuda ")


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_kernels_of_gpus_are_named_and_counted() -> None:
    pytest.importorskip("jax_cuda12_plugin", reason="the compiler for NVIDIA GPUs is in the extra `aot-cuda`")
    block = pl.BlockSpec((128, 256), lambda i: (i, 0))
    double = pl.pallas_call(
        lambda x_ref, out_ref: out_ref.__setitem__((), x_ref[...] * 2),
        grid=(8,),
        in_specs=[block],
        out_specs=block,
        out_shape=BLOCK,
        name="double_blocks",
        compiler_params=triton.CompilerParams(num_warps=4),
    )
    report = analyze(
        lambda x: jax.lax.scan(lambda carry, _: (double(carry), None), x, length=5)[0],
        (BLOCK,),
        "h100:1",
        work={"double_blocks": KernelWork(flops=1024 * 256, hbm_bytes=2**21)},
    )
    (kernel,) = report.gpu_kernels
    assert (kernel.name, kernel.calls) == ("double_blocks", 5)
    assert report.flops == 5 * 1024 * 256 and report.hbm_bytes >= 5 * 2**21
    assert CompileReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
