"""Products with quantised weights against the formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.cpu.backend import CpuBackend
from distaff.backends.gpu.backend import GpuBackend
from distaff.backends.quantized import TABLES, Quantized, dequantized
from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu.backend import TpuBackend

BACKENDS: dict[str, Backend] = {
    "reference": ReferenceBackend(),
    "cpu": CpuBackend(),
    "tpu": TpuBackend(interpret=True, page_size=16),
    "gpu": GpuBackend(interpret=True),
}
RNG = np.random.default_rng(0)


def numbers(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    low, high = {"int8": (-128, 128), "int4": (-8, 8), "float8_e4m3fn": (-100, 100)}[kind]
    return RNG.integers(low, high, shape).astype(np.float32).astype(jnp.dtype(kind) if "float8" in kind else np.int8)


def stored(kind: str, values: np.ndarray, scale: np.ndarray, *, activations: bool = False) -> Quantized:
    if kind == "int4":
        shifted = (values + 8).astype(np.uint8)
        values = shifted[..., ::2] + 16 * shifted[..., 1::2]
    return Quantized(jnp.asarray(values), jnp.asarray(scale), kind, jnp.dtype("float32"), activations)


def grouped(kind: str, shape: tuple[int, ...]) -> tuple[Quantized, np.ndarray]:
    """A weight in groups of 8 along its last axis, as checkpoints store it, and the floats that it stands for."""
    bytes_, groups = RNG.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8), (*shape[:-1], shape[-1] // 8)
    nibbles = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(shape)
    if kind == "float4_e2m1fn":
        exponents = RNG.integers(120, 130, groups, np.uint8)
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
        values = table[nibbles] * np.repeat(2.0 ** (exponents.astype(np.float32) - 127), 8, axis=-1)
        return Quantized(jnp.asarray(bytes_), jnp.asarray(exponents), kind, jnp.dtype("float32")), values
    if kind in TABLES:
        scale = RNG.uniform(0.1, 2, groups).astype(np.float32)
        values = np.asarray(TABLES[kind], np.float32)[nibbles] * np.repeat(scale, 8, axis=-1)
        return Quantized(jnp.asarray(bytes_), jnp.asarray(scale), kind, jnp.dtype("float32")), values
    scale, minimum = (RNG.uniform(-2, 2, groups).astype(np.float16) for _ in range(2))
    values = nibbles * np.repeat(scale, 8, -1).astype(np.float32) + np.repeat(minimum, 8, -1).astype(np.float32)
    arrays = jnp.asarray(bytes_), jnp.asarray(scale)
    return Quantized(*arrays, kind, jnp.dtype("float32"), minimum=jnp.asarray(minimum)), values


@pytest.mark.parametrize("kind", ["float4_e2m1fn", "uint4", "nf4", "fp4"])
def test_what_numbers_of_a_checkpoint_stand_for(kind: str) -> None:
    weight, values = grouped(kind, (6, 40))
    assert weight.shape == values.shape
    assert weight.nbytes == 6 * (20 + 5 * {"float4_e2m1fn": 1, "uint4": 2 * 2, "nf4": 4, "fp4": 4}[kind])
    np.testing.assert_array_equal(dequantized(weight), values)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["float4_e2m1fn", "uint4", "nf4"])
def test_products_and_rows_of_a_checkpoints_numbers(name: str, kind: str) -> None:
    weight, values = grouped(kind, (50, 40))
    tree = BACKENDS[name].prepare_params({"gate": {"weight": weight}, "embedder": {"table": weight}})
    x = RNG.normal(size=(3, 40)).astype(np.float32)
    got = jax.jit(lambda x: BACKENDS[name].linear(x, tree["gate"]["weight"], "TD,FD->TF"))(jnp.asarray(x))
    want = x @ values.astype(np.float64).T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    rows = BACKENDS[name].embed(tree["embedder"]["table"], jnp.asarray([3, 49, 0, 3]))
    np.testing.assert_array_equal(rows, values[[3, 49, 0, 3]])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["float4_e2m1fn", "uint4", "nf4"])
@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0, 0), (70, 1, 129), (0, 0, 5)])
def test_experts_of_a_checkpoints_numbers(name: str, kind: str, sizes: tuple[int, ...]) -> None:
    """Experts without rows, with less than a tile of them, and with several; two rows belong to none."""
    weight, values = grouped(kind, (3, 6, 40))
    tree = BACKENDS[name].prepare_params({"experts": {"gate": weight}})["experts"]["gate"]
    x = RNG.normal(size=(sum(sizes) + 2, 40)).astype(np.float32)
    linear = jax.jit(lambda x, sizes: BACKENDS[name].grouped_linear(x, tree, sizes))
    got = linear(jnp.asarray(x), jnp.asarray(sizes, jnp.int32))
    experts = np.repeat(np.arange(3), sizes)
    want = np.einsum("RI,ROI->RO", x[: len(experts)], values[experts].astype(np.float64))
    np.testing.assert_allclose(got[: len(experts)], want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max(initial=0)))
    assert got.shape == (len(x), 6)


def test_no_more_than_one_expert_is_there_expanded() -> None:
    """Sixteen experts in half bytes: a program that multiplies four rows with them has room for one in floats."""
    weight, values = grouped("float4_e2m1fn", (16, 128, 256))
    sizes = jax.ShapeDtypeStruct((16,), jnp.int32)
    x = jax.ShapeDtypeStruct((4, 256), jnp.float32)
    program = jax.jit(ReferenceBackend().grouped_linear).lower(x, weight, sizes).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.argument_size_in_bytes < values.size * 0.7
    assert memory.temp_size_in_bytes < 3 * values[0].nbytes


def test_four_bits_lie_two_in_a_byte_the_even_one_low() -> None:
    weight = Quantized(jnp.asarray([[0x80, 0xF1]], jnp.uint8), jnp.asarray([[1.0, 10.0]]), "int4", jnp.dtype("float32"))
    assert weight.shape == (1, 4) and weight.nbytes == 2 + 8
    np.testing.assert_array_equal(dequantized(weight), [[-8.0, 0.0, -70.0, 70.0]])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["int8", "int4", "float8_e4m3fn"])
@pytest.mark.parametrize("groups", [1, 4])
def test_weights_alone(name: str, kind: str, groups: int) -> None:
    """An output projection: two axes are summed over."""
    values = numbers(kind, (5, 4, 16))
    scale = RNG.uniform(0.5, 2, (5, groups, 1)).astype(np.float32)
    x = RNG.normal(size=(3, 4, 16)).astype(np.float32)
    want = np.einsum("TNH,DNH->TD", x, values.astype(np.float64) * np.repeat(scale, 4 // groups, axis=1))
    tree = {"attention": {"o": {"weight": stored(kind, values, scale)}}}
    weight = BACKENDS[name].prepare_params(tree)["attention"]["o"]["weight"]
    got = jax.jit(lambda x: BACKENDS[name].linear(x, weight, "TNH,DNH->TD"))(jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


def rounded(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Each token's numbers and scale."""
    scale = np.abs(x).max(axis=1) / np.float32(127 if kind == "int8" else 448)
    scaled = x / scale[:, None]
    if kind == "int8":
        return np.clip(np.rint(scaled), -128, 127), scale
    return scaled.astype(jnp.dtype(kind)).astype(np.float32), scale


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_weights_and_activations(name: str, kind: str) -> None:
    """Each token has a scale of its own; a token of zeros stays one."""
    values, scale = numbers(kind, (7, 40)), RNG.uniform(0.5, 2, (7, 1)).astype(np.float32)
    x = (RNG.normal(size=(4, 40)) * [[1e-3], [1], [100], [0]]).astype(np.float32)
    tokens, each = rounded(x[:3], kind)
    want = (tokens.astype(np.float64) @ values.astype(np.float64).T) * scale.T * each[:, None]
    tree = {"weight": stored(kind, values, scale, activations=True)}
    weight = BACKENDS[name].prepare_params(tree)["weight"]
    got = np.asarray(jax.jit(lambda x: BACKENDS[name].linear(x, weight, "TD,FD->TF"))(jnp.asarray(x)))
    bound = 2e-6 if kind == "int8" else 2e-3  # a tie may round to the other side
    np.testing.assert_array_less(np.abs(got[:3] - want).max(axis=1), bound * np.abs(want).max(axis=1))
    assert not got[3].any()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("activations", [False, True])
def test_groups_of_rows_times_a_matrix_each(name: str, activations: bool) -> None:
    backend, sizes = BACKENDS[name], (3, 0, 2)
    values, scale = numbers("int8", (3, 6, 20)), RNG.uniform(0.5, 2, (3, 6, 1)).astype(np.float32)
    x = RNG.normal(size=(7, 20)).astype(np.float32)
    experts = {"experts": {"gate": stored("int8", values, scale, activations=activations)}}
    weight = backend.prepare_params(experts)["experts"]["gate"]
    got = jax.jit(lambda x: backend.grouped_linear(x, weight, jnp.asarray(sizes, jnp.int32)))(jnp.asarray(x))
    tokens, each = rounded(x, "int8") if activations else (x, np.ones(7, np.float32))
    for row, expert in enumerate([0, 0, 0, 2, 2]):
        want = (tokens[row].astype(np.float64) @ values[expert].astype(np.float64).T) * scale[expert, :, 0] * each[row]
        np.testing.assert_allclose(got[row], want, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_rows_of_a_table(name: str, kind: str) -> None:
    values, scale = numbers(kind, (50, 12)), RNG.uniform(0.5, 2, (50, 1)).astype(np.float32)
    table = BACKENDS[name].prepare_params({"table": stored(kind, values, scale)})["table"]
    ids = [3, 49, 0, 3]
    want = values.astype(np.float32)[ids] * scale[ids]
    np.testing.assert_allclose(BACKENDS[name].embed(table, jnp.asarray(ids)), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cpus_kernel_has_the_bits_of_whole_numbers(dtype: str) -> None:
    """Sums of products of bytes are exact, so that kernel and reference agree in every bit, whatever the batch."""
    values, scale = numbers("int8", (300, 515)), RNG.uniform(0.5, 2, (300, 1)).astype(np.float32)
    plain = Quantized(jnp.asarray(values), jnp.asarray(scale), "int8", jnp.dtype(dtype), activations=True)
    packed = BACKENDS["cpu"].prepare_params({"weight": plain})["weight"]
    x = jnp.asarray(RNG.normal(size=(33, 515)), dtype)
    for rows in (1, 2, 12, 13, 33):
        want = jax.jit(lambda x: BACKENDS["reference"].linear(x, plain, "TD,FD->TF"))(x[:rows])
        got = jax.jit(lambda x: BACKENDS["cpu"].linear(x, packed, "TD,FD->TF"))(x[:rows])
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))
