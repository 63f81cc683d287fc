"""The kernels and an engine step compiled for an H100 that is not there: in place, and within the registers."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from distaff.backends.base import AttentionSpec, PyTree, RaggedIndex
from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.lowering import compile_lowered, lower, make_mesh
from distaff.backends.gpu.attention import gpu_ragged_attention
from distaff.backends.gpu.backend import GpuBackend
from distaff.backends.gpu.prefill import dense_prefill_attention
from distaff.backends.quantized import Quantized
from distaff.models.decoder import unflatten, weight_specs
from distaff.models.kv_cache import allocate_cache
from distaff.models.row_state import RowState
from distaff.models.step import Step, StepBatch

from ...golden.harness import GOLDEN, Golden

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
H100 = GpuBackend(chip="h100")
TOPOLOGY = "h100:1"
# ptxas reports what it moves from registers to memory; with this, XLA takes it for a failure.
NO_SPILLS = {"xla_gpu_autotune_level": 0, "xla_gpu_fail_ptx_compilation_on_register_spilling": True}


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    try:
        return make_mesh(TOPOLOGY)
    except CompilerNotFoundError as error:
        pytest.skip(str(error))


def operands(
    num_kv_heads: int, group: int, head_dim: int, page: int, *, dtype: str, tokens: int, rows: int = 16
) -> tuple[PyTree, ...]:
    """Shapes of what attention takes: q, k, v, a cache of four layers for 4096 positions a row, layer, index."""
    q, k = ((tokens, heads, head_dim) for heads in (num_kv_heads * group, num_kv_heads))
    pages = 4096 // page
    index = RaggedIndex(
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows, pages), (rows + 1,), (rows,)))  # pyright: ignore[reportArgumentType]
    )
    arrays = (
        jax.ShapeDtypeStruct(shape, dtype) for shape in (q, k, k, (4, rows * pages, 2, num_kv_heads, page, head_dim))
    )
    return (*arrays, jax.ShapeDtypeStruct((), jnp.int32), index)


def assert_in_place(program: jax.stages.Compiled, cache: PyTree) -> None:
    """What comes in as the cache goes out as the cache, and no instruction copies it."""
    leaves = jax.tree.leaves(cache)
    memory = program.memory_analysis()
    assert memory and memory.alias_size_in_bytes >= sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    text = program.as_text() or ""
    for leaf in leaves:
        shape = f"[{','.join(map(str, leaf.shape))}]"
        lines = [line for line in text.splitlines() if shape in line.split("metadata=")[0]]
        assert lines
        for operation in (" copy(", " copy-start(", " dynamic-slice(", " transpose(", " fusion("):
            assert not [line for line in lines if operation in line], operation


@pytest.mark.parametrize(
    ("num_kv_heads", "group", "head_dim", "page", "spec", "dtype"),
    [
        (8, 4, 128, 16, AttentionSpec(0.1), "bfloat16"),
        (4, 7, 80, 32, AttentionSpec(0.1, window=1024, soft_cap=30.0), "bfloat16"),
        pytest.param(3, 3, 64, 16, AttentionSpec(0.1), "bfloat16", marks=pytest.mark.slow),
        pytest.param(8, 2, 256, 256, AttentionSpec(0.1, 1024, 50.0), "float16", marks=pytest.mark.slow),
        pytest.param(2, 8, 96, 64, AttentionSpec(0.1), "bfloat16", marks=pytest.mark.slow),
        pytest.param(2, 1, 192, 128, AttentionSpec(0.1), "bfloat16", marks=pytest.mark.slow),
        pytest.param(1, 71, 64, 16, AttentionSpec(0.1), "bfloat16", marks=pytest.mark.slow),
        pytest.param(8, 4, 128, 16, AttentionSpec(0.1), "float32", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_of_a_mixed_step_write_in_place_and_spill_nothing_up_to_192_lanes(
    num_kv_heads: int, group: int, head_dim: int, page: int, spec: AttentionSpec, dtype: str, mesh: jax.sharding.Mesh
) -> None:
    shapes = operands(num_kv_heads, group, head_dim, page, dtype=dtype, tokens=512)
    attend = partial(gpu_ragged_attention, spec=spec, chip=H100.target)
    # Decode of 256-wide heads was measured fastest, at 94 % of the limit, with blocks that spill a few registers.
    options = NO_SPILLS if head_dim <= 192 else H100.compiler_options
    program = compile_lowered(lower(attend, shapes, mesh, donate=(3,)), TOPOLOGY, options)
    assert_in_place(program, shapes[3])
    text = program.as_text() or ""
    for kernel in ("decode_attention", "prefill_attention"):
        assert f"/{kernel}/pallas_call" in text


def test_decode_alone_is_split_over_the_cores(mesh: jax.sharding.Mesh) -> None:
    """Four rows and eight KV heads leave a hundred cores idle, unless rows are split; then parts are put together."""
    shapes = operands(8, 4, 128, 16, dtype="bfloat16", tokens=4, rows=4)
    shapes = (*shapes[:-1], replace(shapes[-1], max_query_len=1))
    attend = partial(gpu_ragged_attention, spec=AttentionSpec(0.1), chip=H100.target)
    program = compile_lowered(lower(attend, shapes, mesh, donate=(3,)), TOPOLOGY, NO_SPILLS)
    assert_in_place(program, shapes[3])
    text = program.as_text() or ""
    assert "grid_x = 4 : i32, grid_y = 8 : i32, grid_z = 12 : i32" in text
    assert "/combine_attention/pallas_call" in text and "/prefill_attention" not in text


def test_dense_attention_spills_nothing(mesh: jax.sharding.Mesh) -> None:
    q, k = (jax.ShapeDtypeStruct((2, 512, heads, 128), jnp.bfloat16) for heads in (32, 8))

    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    lowered = lower(
        lambda q, k, v, lengths: dense_prefill_attention(
            q, k, v, AttentionSpec(0.1), chip=H100.target, lengths=lengths
        ),
        (q, k, k, lengths),
        mesh,
    )
    compile_lowered(lowered, TOPOLOGY, NO_SPILLS)


def test_weights_are_read_where_they_lie(mesh: jax.sharding.Mesh) -> None:
    """No layer's matrices are copied out of the stack of all layers, nor two of them put together."""
    width, layers = 1024, 3
    stack = jax.ShapeDtypeStruct((layers, width, width), jnp.bfloat16)

    def run(x: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
        def body(x: jax.Array, layer: PyTree, _: jax.Array) -> jax.Array:
            q, k = (H100.linear(x, weight, "TD,FD->TF") for weight in layer)
            return x + q * jnp.tanh(k)

        return H100.layer_loop(body, x, (q, k), layers)

    lowered = lower(run, (jax.ShapeDtypeStruct((16, width), jnp.bfloat16), stack, stack), mesh)
    lines = (compile_lowered(lowered, TOPOLOGY, H100.compiler_options).as_text() or "").splitlines()
    assert sum("kind=kCustom, calls=%dynamic-slice-fusion" in line for line in lines) == 2 * layers
    for shape in (f"[1,{width},{width}]", f"[{width},{width}]", f"[{2 * width},{width}]"):
        copied = [line for line in lines if f"bf16{shape}" in line.split(" fusion")[0] and " fusion" in line]
        assert not copied and not [line for line in lines if shape in line and " copy(" in line]


@pytest.mark.parametrize(
    ("case", "decode"),
    [
        pytest.param("smollm2", False, marks=pytest.mark.slow),
        pytest.param("smollm2", True, marks=pytest.mark.slow),
        pytest.param("gpt_oss", False, marks=pytest.mark.slow),
        pytest.param("gpt_oss", True, marks=pytest.mark.slow),
    ],
)
def test_an_engine_step_copies_no_cache(case: str, decode: bool, mesh: jax.sharding.Mesh) -> None:
    """The loop over layers hands the whole cache from kernel to kernel."""
    config, rows, pages = Golden(GOLDEN / case).config, 8, 20
    weights = unflatten(
        {
            spec.path: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
            for spec in weight_specs(config, jnp.bfloat16).values()
        }
    )
    groups = len(config.cache_groups)
    cache, state, batch = jax.eval_shape(
        lambda: (
            allocate_cache(config, H100, num_pages=[pages] * groups, page_size=16, dtype=jnp.bfloat16),
            RowState.empty(rows, 64, config.vocab_size),
            StepBatch(
                slots=jnp.zeros(rows, jnp.int32),
                query_starts=jnp.zeros(rows + 1, jnp.int32),
                kv_lens=jnp.zeros(rows, jnp.int32),
                page_tables=(jnp.zeros((rows, 4), jnp.int32),) * groups,
                draws=jnp.zeros(rows, jnp.bool_),
                num_steps=jnp.int32(1),
            ),
        )
    )
    step = Step(config, H100, num_tokens=rows if decode else 64, decode=decode)
    program = compile_lowered(
        lower(step, (weights, cache, state, batch), mesh, donate=(1,)), TOPOLOGY, H100.compiler_options
    )
    assert_in_place(program, cache)


@pytest.mark.parametrize(
    ("kind", "call", "sums"),
    [("int8", "__cublas$lt$matmul", "s32"), ("float8_e4m3fn", "__cublas$lt$matmul$f8", "f32")],
)
def test_rounded_products_are_done_by_the_matrix_units(
    kind: str, call: str, sums: str, mesh: jax.sharding.Mesh
) -> None:
    """Bytes times bytes into whole numbers of 32 bits, floats of 8 bits with each other: nothing is widened before."""
    tokens, width, outputs = 32, 1024, 2048

    def rounded() -> Quantized:
        values = jnp.zeros((outputs, width), kind)
        return Quantized(values, jnp.ones((outputs, 1)), kind, jnp.dtype("bfloat16"), activations=True)

    weight = jax.eval_shape(rounded)
    x = jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16)
    lowered = lower(lambda x, weight: H100.linear(x, weight, "TD,FD->TF"), (x, weight), mesh)
    text = compile_lowered(lowered, TOPOLOGY, H100.compiler_options).as_text() or ""
    (product,) = (line for line in text.splitlines() if f'custom_call_target="{call}"' in line)
    assert f"({sums}[{tokens},{outputs}]" in product and "%weight_values" in product
    for wide in ("bf16", "f16", "f32", "s32"):
        assert f"{wide}[{outputs},{width}]" not in text
