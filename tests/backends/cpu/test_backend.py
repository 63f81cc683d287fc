"""The CPU's backend whole: families against the oracle's logits, weights read in place, reasons to decline."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from distaff.backends import select
from distaff.backends.base import CacheGroup, PyTree
from distaff.backends.cpu import backend as cpu_backend
from distaff.backends.cpu import jit
from distaff.backends.cpu.backend import CpuBackend
from distaff.backends.cpu.packing import PackedMatrix, pack
from distaff.backends.errors import UnsupportedError
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights, bind, flatten
from distaff.models.kv_cache import KVCache, RaggedBatch, allocate_cache
from distaff.models.layers import Machine
from distaff.models.placement import OneDevice

from ...golden.harness import FP32_BOUND, GOLDEN, MAX_TOKENS, PAGE_SIZE, PAGES, Golden

BACKEND = CpuBackend()
MACHINE = Machine(BACKEND, OneDevice())


def forward(config: ModelConfig, weights: Weights, cache: KVCache, batch: RaggedBatch) -> tuple[jax.Array, KVCache]:
    decoder = bind(config, weights)
    hidden, cache = decoder(batch, cache, MACHINE)
    return decoder.logits(hidden, MACHINE), cache


def batch_of(tokens: list[int], start: int, groups: int) -> RaggedBatch:
    return RaggedBatch.single(tokens, start, num_tokens=MAX_TOKENS, num_pages=len(PAGES), num_groups=groups)


def new_cache(config: ModelConfig, dtype: DTypeLike) -> KVCache:
    pages = [len(PAGES) + 1] * len(config.cache_groups)
    return allocate_cache(config, BACKEND, num_pages=pages, page_size=PAGE_SIZE, dtype=dtype)


@pytest.mark.parametrize(
    "case",
    [
        "gemma2",
        "gpt_oss",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("llama31", "opt_350m", "qwen3_moe")),
    ],
)
def test_families_agree_with_the_oracle(case: str) -> None:
    """The prompt in two chunks, then the oracle's own tokens."""
    golden = Golden(GOLDEN / case)
    run = jax.jit(partial(forward, golden.config))
    weights, cache = BACKEND.prepare_params(golden.weights()), new_cache(golden.config, jnp.float32)
    found: list[np.ndarray] = []
    for start, stop in ((0, 17), (17, len(golden.tokens))):
        logits, cache = run(weights, cache, batch_of(golden.tokens[start:stop], start, len(cache)))
        found.append(np.asarray(logits)[: stop - start])
    assert np.abs(np.concatenate(found) - golden.logits).max() <= FP32_BOUND


def residual_and_norm(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What stands between the matrices of a layer: an addition, and sums over the width."""
    x = x[:, 0] + x[:, 1]
    wide = x.astype(jnp.float32)
    return (wide * jnp.sqrt(1 / (jnp.square(wide).mean(-1, keepdims=True) + 1e-5))).astype(x.dtype), x


def weights_of_experts(x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x[:, 0].astype(jnp.float32), axis=-1)


@pytest.mark.parametrize("function", [residual_and_norm, weights_of_experts])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_among_any_number_of_others(
    function: Callable[[jax.Array], PyTree], dtype: str
) -> None:
    """Of what XLA computes between the kernels."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(128, 2, 64)) * 3, dtype)
    whole = jax.tree.leaves(BACKEND.compile(function, (rows,))(rows))
    for count in (1, 2, 8, 31):
        program = BACKEND.compile(function, (rows[:count],))
        for start in range(0, 128 - count, count):
            for part, of in zip(jax.tree.leaves(program(rows[start : start + count])), whole, strict=True):
                np.testing.assert_array_equal(part, of[start : start + count])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_copies_neither_weights_nor_cache(dtype: str) -> None:
    """Packed weights and the cache are as large in the compiled loop as outside, and nothing copies or slices them."""
    golden = Golden(GOLDEN / "llama31")
    weights = BACKEND.prepare_params(golden.weights(jnp.dtype(dtype)))
    cache = new_cache(golden.config, dtype)
    batch = batch_of(golden.tokens[:3], 0, len(cache))
    program = BACKEND.compile(partial(forward, golden.config), (weights, cache, batch), donate=(1,))
    text = program.as_text()
    assert text is not None and "while(" in text
    packed = [leaf for leaf in flatten(weights).values() if isinstance(leaf, PackedMatrix)]
    large = [*(leaf.panels for leaf in packed if leaf.stack), *jax.tree.leaves(cache)]
    assert len(large) > 7
    for array in large:
        whole = re.escape(str(list(array.shape)).replace(" ", ""))
        one_layer = re.escape(str([1, *array.shape[1:]]).replace(" ", ""))
        for shape in (whole, one_layer):
            assert not re.search(rf"= \w+{shape}\S* (copy|transpose|dynamic-slice|fusion)\(", text), shape


def test_only_matrices_are_packed() -> None:
    golden = Golden(GOLDEN / "gpt_oss")
    weights, packed = golden.weights(), flatten(BACKEND.prepare_params(golden.weights()))
    for path, leaf in flatten(weights).items():
        assert packed[path].shape == leaf.shape and packed[path].ndim == leaf.ndim
    kinds = {path.rsplit(".", 2)[-1] for path, leaf in packed.items() if isinstance(leaf, PackedMatrix)}
    assert kinds == {"weight", "table", "gate", "up", "down"}
    o = next(leaf for path, leaf in packed.items() if path.endswith("attention.o.weight"))
    assert len(o.stack) == 1 and len(o.out) == 1 and len(o.inner) == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embed_reads_rows_of_a_packed_table(dtype: str) -> None:
    table = np.random.default_rng(0).standard_normal((77, 13)).astype(jnp.dtype(dtype))
    ids = np.asarray([0, 76, 31, 32, 33, 31], np.int32)
    np.testing.assert_array_equal(BACKEND.embed(pack(table, 0, 1), jnp.asarray(ids)), table[ids])


def test_abstract_weights_compile_the_same() -> None:
    """Packing maps shapes to shapes, and a packed tree survives tree_map."""
    weight = jax.ShapeDtypeStruct((2, 40, 24), jnp.bfloat16)
    packed = jax.eval_shape(lambda w: pack(w, 1, 1), weight)
    assert packed.shape == (2, 40, 24) and packed.dtype == jnp.bfloat16
    assert packed.layer(jnp.int32(1)).shape == (40, 24)
    assert jax.tree.structure(jax.tree.map(lambda leaf: leaf, packed)) == jax.tree.structure(packed)


def test_plain_weights_fall_back_to_the_reference() -> None:
    x, w = jnp.ones((3, 4)), jnp.ones((2, 4))
    np.testing.assert_allclose(BACKEND.linear(x, w, "TD,FD->TF"), 4.0)
    np.testing.assert_allclose(BACKEND.grouped_linear(x, w[None], jnp.asarray([3])), 4.0)
    np.testing.assert_allclose(BACKEND.embed(w, jnp.asarray([1])), 1.0)


def test_float16_and_pages_without_a_kernel_are_declined() -> None:
    group = CacheGroup(num_layers=1, num_kv_heads=1, head_dim=8)
    with pytest.raises(UnsupportedError, match="dtype float16, supported are float32, bfloat16"):
        BACKEND.check([group], dtype="float16", kv_dtype="float32", page_size=16)
    with pytest.raises(UnsupportedError, match="page size 5"):
        BACKEND.check([group], dtype="float32", kv_dtype="float32", page_size=5)
    BACKEND.check([group], dtype="bfloat16", kv_dtype="float32", page_size=BACKEND.page_size)


def test_other_devices_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(UnsupportedError, match="JAX's default backend is tpu, not cpu"):
        CpuBackend()
    assert select.select_backend().name == "reference"


def test_a_system_without_executable_memory_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(13, "cannot allocate executable memory")

    monkeypatch.setattr(jit.llvm, "check_jit_execution", refuse)
    monkeypatch.setattr(cpu_backend, "check_jit", jit.check_jit.__wrapped__)
    with pytest.raises(UnsupportedError, match="no machine code at run time: .*cannot allocate executable memory"):
        CpuBackend()


def test_without_llvmlite_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distaff.backends.cpu.backend", None)
    with pytest.raises(UnsupportedError, match="its kernels need llvmlite"):
        select.select_backend("cpu")
    assert select.select_backend().name == "reference"


@pytest.mark.parametrize("max_tokens", [1, 16, 100, 512, 2048, 8192])
def test_buckets_are_few_and_reach_far_enough(max_tokens: int) -> None:
    buckets = BACKEND.buckets(max_tokens)
    assert list(buckets) == sorted(set(buckets)) and len(buckets) <= 8
    assert max(buckets) >= max_tokens and all(size < max_tokens for size in buckets[:-1])
