"""Grouped matmul against the reference, interpreted; and how the TPU backend uses it."""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.compile_job import CompileJob, run_job
from distaff.backends.errors import UnsupportedError
from distaff.backends.hardware import chip
from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu import grouped_kernel
from distaff.backends.tpu.backend import TpuBackend
from distaff.backends.tpu.expert_weights import ExpertLayer
from distaff.backends.tpu.grouped import grouped_matmul
from distaff.backends.tpu.grouped_plan import GroupedBlocks, GroupedPlan, steps_of
from distaff.backends.tpu.grouped_work import grouped_work

BLOCKS = GroupedBlocks(rows=64, sums=8192, depth=256, lone_mib=1, vmem_mib=2)
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
"""Of outputs whose standard deviation is 1."""
SHAPES: dict[str, tuple[int, int, int, int]] = {
    "several tiles, parts and columns": (200, 5, 300, 320),
    "the same, of matrices that lie the other way": (150, 4, 512, 200),
    "one tile": (40, 3, 128, 96),
    "more groups than rows": (16, 24, 64, 130),
}
"""R, E, I, O."""
LAYER = 1


@st.composite
def groups(draw: st.DrawFn, name: str) -> list[int]:
    """Sizes of groups, some of them empty, with rows left over or not."""
    rows, count = SHAPES[name][:2]
    sizes: list[int] = []
    for _ in range(count):
        left = rows - sum(sizes)
        sizes.append(draw(st.one_of(st.just(0), st.just(left), st.integers(0, left), st.integers(0, min(left, 17)))))
    return sizes


@cache
def multiply() -> Callable[..., jax.Array]:
    return jax.jit(partial(grouped_matmul, generation="v6e", blocks=BLOCKS, interpret=True))


def run(x: Any, weight: Any, sizes: list[int]) -> np.ndarray:
    y = multiply()(jnp.asarray(x), jnp.asarray(weight), jnp.int32(LAYER), jnp.asarray(sizes, jnp.int32))
    return np.asarray(y.astype(jnp.float32))


def check(name: str, dtype: str, sizes: list[int]) -> None:
    """Against the reference; what nobody may read is NaN."""
    num_rows, count, num_inputs, num_outputs = SHAPES[name]
    rng, total = np.random.default_rng(0), sum(sizes)
    x = jnp.asarray(rng.normal(size=(num_rows, num_inputs)), dtype).at[total:].set(jnp.nan)
    weight = jnp.asarray(rng.normal(size=(3, count, num_outputs, num_inputs)) / num_inputs**0.5, dtype)
    read = jnp.asarray(sizes, jnp.int32) > 0
    poisoned = (
        jnp.full_like(weight, jnp.nan)
        .at[LAYER]
        .set(jnp.where(read[:, None, None], weight[LAYER], jnp.nan).astype(dtype))
    )
    got = run(x, poisoned, sizes)
    exact = [np.asarray(a.astype(jnp.float32)) for a in (x, weight[LAYER])]
    want = ReferenceBackend().grouped_linear(
        jnp.asarray(exact[0]), jnp.asarray(exact[1]), jnp.asarray(sizes, jnp.int32)
    )
    np.testing.assert_allclose(got[:total], np.asarray(want)[:total], rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@given(groups("several tiles, parts and columns"))
@settings(max_examples=6)
def test_each_group_is_multiplied_by_its_matrix(sizes: list[int]) -> None:
    check("several tiles, parts and columns", "float32", sizes)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", sorted(BOUNDS))
@pytest.mark.parametrize("name", sorted(SHAPES))
@given(data=st.data())
@settings(max_examples=20)
def test_each_group_is_multiplied_by_its_matrix_on_many_draws(name: str, dtype: str, data: st.DataObject) -> None:
    check(name, dtype, data.draw(groups(name)))


@pytest.mark.parametrize("name", sorted(SHAPES))
@given(data=st.data())
@settings(max_examples=20)
def test_steps_cover_each_row_once_and_need_a_matrix_in_one_go(name: str, data: st.DataObject) -> None:
    sizes = data.draw(groups(name))
    num_rows, count, num_inputs, num_outputs = SHAPES[name]
    shape: dict[str, Any] = dict(num_rows=num_rows, num_groups=count, num_inputs=num_inputs, num_outputs=num_outputs)
    plan = GroupedPlan.of(**shape, dtype="float32", generation="v6e", blocks=BLOCKS)
    steps = jax.device_get(_steps(plan)(jnp.asarray(sizes, jnp.int32)))
    owner = np.full(plan.row_tiles * plan.tile_rows, -1)
    for group, tile, low, high in zip(*steps, strict=True):
        rows = slice(tile * plan.tile_rows + low, tile * plan.tile_rows + high)
        assert (owner[rows] == -1).all()
        owner[rows] = group
    assert owner[: sum(sizes)].tolist() == np.repeat(np.arange(count), sizes).tolist()
    assert (owner[sum(sizes) :] == -1).all()
    assert (np.diff(steps.group) >= 0).all() and (np.diff(steps.tile) >= 0).all()


@cache
def _steps(plan: GroupedPlan) -> Any:
    return jax.jit(partial(steps_of, plan))


def test_the_work_is_what_the_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    product = grouped_kernel._product

    def counted(*arguments: Any) -> Any:
        jax.debug.callback(lambda: seen.update(["products"]))
        return product(*arguments)

    monkeypatch.setattr(grouped_kernel, "_product", counted)
    sizes = [70, 0, 3, 90, 20]
    rows, count, num_inputs, num_outputs = SHAPES["several tiles, parts and columns"]
    multiply.cache_clear()  # traced anew, with what counts
    run(np.ones((rows, num_inputs), np.float32), np.ones((2, count, num_outputs, num_inputs), np.float32), sizes)
    jax.effects_barrier()
    multiply.cache_clear()
    shape: dict[str, Any] = dict(num_rows=rows, num_inputs=num_inputs, num_outputs=num_outputs)
    work = grouped_work(sizes, **shape, generation="v6e", dtype="float32", blocks=BLOCKS)
    assert seen == work.counts
    assert work.flops == 2 * 183 * num_inputs * num_outputs


def test_what_the_kernel_does_not_have_is_refused() -> None:
    shape: dict[str, Any] = dict(num_rows=64, num_groups=8, num_inputs=512, num_outputs=512)
    wide: dict[str, Any] = {**shape, "num_inputs": 2**17}
    with pytest.raises(UnsupportedError, match="dtype float16"):
        GroupedPlan.of(**shape, dtype="float16", generation="v6e")
    with pytest.raises(UnsupportedError, match="generation v3"):
        GroupedPlan.of(**shape, dtype="bfloat16", generation="v3")
    with pytest.raises(UnsupportedError, match="fewer inputs"):
        GroupedPlan.of(**wide, dtype="bfloat16", generation="v4")


def test_matrices_lie_as_the_compiler_lays_them() -> None:
    shape: dict[str, Any] = dict(num_rows=64, num_groups=8, dtype="bfloat16", generation="v6e")
    sizes = {(192, 2048): True, (96, 2048): True, (2048, 192): False, (2048, 768): False, (256, 256): False}
    for (inputs, outputs), inputs_first in sizes.items():
        assert GroupedPlan.of(**shape, num_inputs=inputs, num_outputs=outputs).inputs_first == inputs_first


@pytest.mark.parametrize("generation", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
@pytest.mark.parametrize("shape", [(512, 128, 2048, 768), (16384, 8, 4096, 14336), (16384, 8, 14336, 4096)])
def test_plans_fit(generation: str, shape: tuple[int, int, int, int]) -> None:
    names = ("num_rows", "num_groups", "num_inputs", "num_outputs")
    sizes: dict[str, Any] = dict(zip(names, shape, strict=True))
    plan = GroupedPlan.of(**sizes, dtype="bfloat16", generation=generation)
    assert plan.vmem_bytes <= plan.budget < plan.blocks.vmem_mib * 2**20
    assert plan.tile_columns % plan.piece_columns == 0 and plan.piece_rows <= plan.tile_rows


def test_the_backend_multiplies_by_the_kernel_and_slices_no_stack() -> None:
    """In a loop over layers the kernel takes the whole stack; what is too wide for it goes to XLA."""
    backend = TpuBackend(generation="v6e", interpret=True)
    stacked = {"mlp": {"experts": {"gate": jnp.ones((2, 3, 128, 64))}, "up": {"weight": jnp.ones((2, 64, 64))}}}
    x, sizes = jnp.ones((16, 64)), jnp.asarray([9, 0, 7], jnp.int32)

    def body(carry: jax.Array, layer: Any, number: jax.Array) -> jax.Array:
        gate = layer["mlp"]["experts"]["gate"]
        assert isinstance(gate, ExpertLayer) and gate.shape == (3, 128, 64) and gate.ndim == 3
        assert gate.dtype == jnp.float32
        return carry + backend.grouped_linear(x, gate, sizes) * layer["mlp"]["up"]["weight"][0, 0]

    def loop(stacked: Any) -> jax.Array:
        return backend.layer_loop(body, jnp.zeros((16, 128)), stacked, 2)

    np.testing.assert_array_equal(loop(stacked), np.full((16, 128), 128.0))
    text = str(jax.make_jaxpr(loop)(stacked))
    assert "name=grouped_matmul" in text and "ragged_dot" not in text and "f32[3,128,64]" not in text

    wide = jax.make_jaxpr(TpuBackend(generation="v4", interpret=True).grouped_linear)(
        jax.ShapeDtypeStruct((16, 2**17), jnp.bfloat16),
        jax.ShapeDtypeStruct((3, 128, 2**17), jnp.bfloat16),
        jax.ShapeDtypeStruct((3,), jnp.int32),
    )
    assert "ragged_dot" in str(wide) and "grouped_matmul" not in str(wide)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"])
@pytest.mark.parametrize("shape", [(512, 128, 2048, 768), (4096, 8, 4096, 14336), (32, 4, 64, 96), (32, 32, 192, 2048)])
def test_it_compiles_small_and_earns_its_place(shape: tuple[int, int, int, int], topology: str) -> None:
    """Under 5,000 bundles and 10 s of compile; at the model's sizes within twice the time that memory or the matrix
    unit needs, where `lax.ragged_dot` takes 5 to 520 times as long."""
    rows, count, num_inputs, num_outputs = shape
    arguments: dict[str, Any] = dict(
        generation=topology.split(":")[0],
        num_rows=rows,
        num_experts=count,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
    )
    report = run_job(CompileJob("distaff.backends.tpu.cases:grouped", arguments, topology))
    (kernel,) = report.kernels
    assert kernel.bundles < 5000 and report.compile_seconds < 10
    if count > 4:
        assert kernel.hbm_seconds is not None and kernel.flops is not None
        limit = max(kernel.hbm_seconds, kernel.flops / chip(arguments["generation"]).device_flops())
        assert max(kernel.compute_seconds, kernel.hbm_seconds) < 2 * limit
