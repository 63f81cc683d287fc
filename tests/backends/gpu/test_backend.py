"""The backend of GPUs: what it declines, what it tells the compiler, and a whole engine on its kernels."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from distaff.backends.base import CacheGroup
from distaff.backends.errors import UnsupportedError
from distaff.backends.gpu import attention
from distaff.backends.gpu.backend import GpuBackend
from distaff.backends.select import select_backend
from distaff.serving import EngineConfig, Request, SamplingParams, build_engine
from distaff.serving.errors import DeviceError

from ...golden.harness import GOLDEN, Golden

NUM_TOKENS, MAX_LEN = 20, 80
AFTER = (0, 1, 7)


def test_without_a_gpu_it_declines() -> None:
    with pytest.raises(UnsupportedError, match="JAX's default backend is cpu, not a GPU; .*extra `cuda`"):
        GpuBackend()
    with pytest.raises(UnsupportedError, match="not a GPU"):
        select_backend("gpu")


def test_an_unknown_chip_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="chip 'voodoo2', expected one of h100, .*mi300x"):
        GpuBackend(chip="voodoo2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(head_dim=257), "head width 257, supported are 1 to 256"),
        (dict(page_size=8), "page size 8, supported are 16, 32, 64, 128, 256"),
        (dict(page_size=48), "page size 48, supported are 16"),
        (dict(dtype="float64"), "dtype float64, supported are float32, bfloat16, float16"),
        (dict(kv_dtype="int8"), "kv dtype int8, supported are float32, bfloat16, float16"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = dict(head_dim=128, dtype="bfloat16", kv_dtype="bfloat16", page_size=16) | change
    group = CacheGroup(num_layers=2, num_kv_heads=3, head_dim=asked.pop("head_dim"))
    with pytest.raises(UnsupportedError, match=f"backend gpu: {message}"):
        GpuBackend(interpret=True).check([group], **asked)


@pytest.mark.parametrize("head_dim", [4, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("page_size", [16, 32, 64, 128, 256])
def test_what_models_have_is_accepted(head_dim: int, page_size: int) -> None:
    for backend in (GpuBackend(interpret=True), GpuBackend(chip="mi300x")):
        group = CacheGroup(num_layers=2, num_kv_heads=3, head_dim=head_dim)
        backend.check([group], dtype="bfloat16", kv_dtype="bfloat16", page_size=page_size)


def test_the_compiler_is_not_to_time_anything_on_a_chip_that_is_not_here() -> None:
    assert not any(name.startswith("xla_gpu") for name in GpuBackend(interpret=True).compiler_options)
    assert GpuBackend(chip="h100").compiler_options["xla_gpu_autotune_level"] == 0


def test_memory_of_a_chip_that_is_not_here_is_what_its_maker_says() -> None:
    assert GpuBackend(chip="h100").memory().total == 80 * 2**30
    assert GpuBackend(interpret=True).memory().shared


def test_the_cache_keeps_a_page_of_one_head_together() -> None:
    group = CacheGroup(num_layers=2, num_kv_heads=3, head_dim=80)
    cache = GpuBackend(interpret=True).allocate_cache(group, num_pages=5, page_size=16, dtype=jnp.bfloat16)
    assert cache.shape == (2, 5, 2, 3, 16, 80) and cache.dtype == jnp.bfloat16


class Broken(Exception):
    """What a patched kernel raises."""


@pytest.fixture
def golden() -> Iterator[Golden]:
    yield Golden(GOLDEN / "smollm2")
    jax.clear_caches()  # programs of patched kernels


def answers(golden: Golden) -> list[list[int]]:
    """Greedy answers to the golden text cut at several places: prompts in pieces, rows together, of several lengths."""
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, seed=0, ignore_eos=True)
    config = EngineConfig(context=MAX_LEN, max_batch=4, max_step_tokens=16, kv_memory=2**20)
    prompts = [tuple(golden.tokens[: golden.prompt_len + more]) for more in AFTER]
    with build_engine(golden.config, golden.weights(), GpuBackend(interpret=True), config, dtype="float32") as engine:
        results = engine.generate([Request(prompt, params) for prompt in prompts])
    return [list(result.token_ids) for result in results]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_an_engine_writes_what_the_oracle_writes(golden: Golden) -> None:
    """Greedily continued from anywhere, the text of `transformers` goes on the same."""
    clear, compared = golden.clear(), 0
    for more, answer in zip(AFTER, answers(golden), strict=True):
        expected = golden.tokens[golden.prompt_len + more :][: min(NUM_TOKENS, clear - more)]
        assert answer[: len(expected)] == expected
        compared += len(expected)
    print(f"{compared} tokens compared")
    assert compared >= 16 * len(AFTER)


@pytest.mark.parametrize("kernel", ["decode_attention", "prefill_attention"])
def test_no_other_attention_stands_in_for_a_kernel(
    golden: Golden, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise Broken

    monkeypatch.setattr(attention, kernel, broken)
    with pytest.raises(DeviceError) as failure:
        answers(golden)
    assert isinstance(failure.value.__cause__, Broken)
