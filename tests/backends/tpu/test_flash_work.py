"""The models of the work of flash and prefill count what the kernels do, interpreted; and name the compiler's loops."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from distaff.backends.base import AttentionSpec, RaggedIndex
from distaff.backends.kernel_work import KernelWork
from distaff.backends.tpu import cases
from distaff.backends.tpu.flash import flash_attention
from distaff.backends.tpu.flash_kernel import DenseRows
from distaff.backends.tpu.flash_work import flash_work
from distaff.backends.tpu.prefill import prefill_attention
from distaff.backends.tpu.prefill_kernel import PagedRows
from distaff.backends.tpu.prefill_plan import PrefillBlocks
from distaff.backends.tpu.prefill_step import Step
from distaff.backends.tpu.prefill_walk import Walk
from distaff.backends.tpu.prefill_work import prefill_work

BLOCKS = PrefillBlocks(queries=128, keys=128, heads=2, buffers=3, matrix_sums=True, vmem_mib=100)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the walk's parts run, by the names of their counts, and the bytes of the copies that start."""
    found: Counter[str] = Counter()

    def count(name: str, by: int = 1) -> None:
        jax.debug.callback(lambda: found.update({name: by}))

    def counted(owner: Any, method: str, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, method)

        def run(*arguments: Any, **named: Any) -> Any:
            count(name)
            return call(*arguments, **named)

        monkeypatch.setattr(owner, method, run)

    class Copy:
        def __init__(self, source: Any, *rest: Any) -> None:
            self.bytes = math.prod(source.shape) * source.dtype.itemsize
            self.copy = copy(source, *rest)
            self.wait = self.copy.wait

        def start(self) -> None:
            count("bytes", self.bytes)
            self.copy.start()

    def from_memory_to_memory(*arguments: Any) -> list[Copy]:
        copies = whole(*arguments)
        for each in copies:
            each.bytes *= 2
        return copies

    copy, whole = pltpu.make_async_copy, PagedRows._copy_whole
    monkeypatch.setattr(PagedRows, "_copy_whole", from_memory_to_memory)
    monkeypatch.setattr(pltpu, "make_async_copy", Copy)
    counted(Walk, "_fetch_q", "tiles")
    counted(Walk, "_keep_neighbours", "shared")
    counted(Walk, "_set_bias", "masked")
    counted(Walk, "_clear_bias", "cleared")
    counted(Step, "run", "pieces")
    for rows in (DenseRows, PagedRows):
        counted(rows, "fetch", "chunks")
    counted(PagedRows, "_write_chunk", "chunks_written")
    return found


def compare(seen: Counter[str], work: KernelWork) -> None:
    assert abs(seen.pop("bytes") - work.hbm_bytes) <= 0.02 * work.hbm_bytes
    assert dict(seen) == {name: count for name, count in work.counts.items() if count}


@pytest.mark.parametrize(("window", "causal"), [(None, True), (100, True), (None, False)])
def test_flash(window: int | None, causal: bool, seen: Counter[str]) -> None:
    q, k = (jnp.zeros((2, tokens, heads, 64), jnp.bfloat16) for tokens, heads in ((300, 4), (420, 2)))
    spec = AttentionSpec(0.125, window)
    results = flash_attention(
        q, k, k, spec, generation="v6e", blocks=BLOCKS, causal=causal, return_lse=True, interpret=True
    )
    jax.block_until_ready(results)
    jax.effects_barrier()
    work = flash_work(
        300, 420, num_heads=4, num_kv_heads=2, head_dim=64, generation="v6e", batch=2, window=window, causal=causal,
        return_lse=True, blocks=BLOCKS,
    )  # fmt: skip
    compare(seen, work)


@pytest.mark.parametrize(("window", "kv_dtype"), [pytest.param(None, "bfloat16", marks=pytest.mark.slow), (40, "int8")])
def test_prefill(window: int | None, kv_dtype: str, seen: Counter[str]) -> None:
    lens, queries, page = [454, 5, 200, 0, 145], [150, 3, 200, 0, 17], 16  # the first row's new pages are aligned
    starts = [0, 150, 153, 353, 353, 370]
    q, k = (jnp.zeros((380, heads, 64), jnp.bfloat16) for heads in (4, 2))
    pages = jnp.zeros((1, 5 * 30, 2 * page, 128), kv_dtype)
    table = jnp.arange(5 * 30, dtype=jnp.int32).reshape(5, 30)
    index = RaggedIndex(table, jnp.asarray(starts, jnp.int32), jnp.asarray(lens, jnp.int32))
    results = prefill_attention(
        q, k, k, pages, jnp.int32(0), index, AttentionSpec(0.125, window), generation="v6e", blocks=BLOCKS,
        interpret=True,
    )  # fmt: skip
    jax.block_until_ready(results)
    jax.effects_barrier()
    work = prefill_work(
        lens, queries, num_heads=4, num_kv_heads=2, head_dim=64, page_size=page, kv_dtype=kv_dtype, generation="v6e",
        window=window, blocks=BLOCKS,
    )  # fmt: skip
    compare(seen, work)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["flash", "prefill"])
def test_a_shape_of_the_report(name: str, seen: Counter[str]) -> None:
    """What `distaff bench kernels` is told of 4096 tokens, with the table's blocks."""
    shape = {"page": 128} if name == "prefill" else {}
    case = getattr(cases, name)(generation="v6e", length=4096, **shape)
    q, k, v, *pages = (jnp.zeros(x.shape, x.dtype) for x in case.abstract_args[:4])
    spec = AttentionSpec(0.125)
    if name == "flash":
        results = flash_attention(q, k, v, spec, generation="v6e", interpret=True)
    else:
        index = jax.tree.map(jnp.asarray, case.abstract_args[-1])
        results = prefill_attention(q, k, v, pages[0], jnp.int32(0), index, spec, generation="v6e", interpret=True)
    jax.block_until_ready(results)
    jax.effects_barrier()
    assert isinstance(case.work, KernelWork)
    compare(seen, case.work)


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
@pytest.mark.parametrize("name", ["flash", "prefill"])
def test_the_loops_of_the_compiled_kernel_are_those_it_names(name: str, generation: str) -> None:
    """The body of three stages runs as often as the model counts, and the last condition is the last in the program."""
    from distaff.backends.static_cost import analyze
    from distaff.scripts.kernel_rows import TOPOLOGIES

    shape = {"page": 128} if name == "prefill" else {}
    case = getattr(cases, name)(generation=generation, length=1024, **shape)
    assert isinstance(case.work, KernelWork)
    report = analyze(
        case.function, case.abstract_args, TOPOLOGIES[generation], work=case.work, donate=case.donate,
        compiler_options=case.compiler_options,
    )  # fmt: skip
    (kernel,) = report.kernels
    assert max(case.work.conditions) == len(kernel.regions) - 1
    hot = kernel.hot_loop
    assert hot is not None and hot.slots["matmul"] > 0.3
    outer = [loop.trips for loop in kernel.loops if loop.start < hot.start < loop.end and loop is not hot]
    assert math.prod(outer) * hot.trips == pytest.approx(case.work.counts["pieces"])
