"""Cases trace, hold the lengths that their shape says, and give the cache back where they took it."""

from typing import Any

import jax
import numpy as np
import pytest

from distaff.backends.base import RaggedIndex
from distaff.backends.kernel_work import KernelWork
from distaff.backends.tpu import cases
from distaff.backends.tpu.block_sizes import block_sizes

SHAPES: dict[str, dict[str, Any]] = {
    "decode": {"batch": 4, "context": 256, "page": 16},
    "prefill": {"length": 256, "page": 16},
    "flash": {"length": 256},
}


def test_the_norms_case_traces() -> None:
    case = cases.norm(generation="v6e", num_rows=64, width=256)
    made = jax.eval_shape(case.function, *case.abstract_args)
    assert (made.numbers.shape, made.numbers.dtype.name, made.scale.shape) == ((64, 256), "int8", (64,))


@pytest.mark.parametrize("generation", ["v5e", "tpu7x"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_case_traces(name: str, generation: str) -> None:
    case = getattr(cases, name)(generation=generation, **SHAPES[name])
    results = jax.eval_shape(case.function, *case.abstract_args)
    out = results[0] if isinstance(results, tuple) else results
    queries = case.abstract_args[0]
    assert (out.shape, out.dtype) == (queries.shape, queries.dtype)
    for number, kept in zip(case.donate, results[-len(case.donate) :] if case.donate else (), strict=True):
        assert (kept.shape, kept.dtype) == (case.abstract_args[number].shape, case.abstract_args[number].dtype)


def test_rows_own_their_pages_and_all_of_them() -> None:
    case = cases.decode(generation="v6e", batch=4, context=256, page=16, queries=2)
    index = case.abstract_args[-1]
    assert isinstance(index, RaggedIndex)
    assert sorted(np.ravel(index.page_table)) == list(range(4 * 16)) == list(range(case.abstract_args[3].shape[1]))
    assert np.diff(index.query_starts).tolist() == [2] * 4 and index.kv_lens.tolist() == [256] * 4
    assert index.max_query_len == 2


def test_work_is_that_of_the_shape() -> None:
    """The keys and values of all rows, and at most a tenth more."""
    work = cases.decode(generation="v6e", batch=64, context=4096, page=16, kv_dtype="int8").work
    assert isinstance(work, KernelWork)
    cached = 64 * 4096 * 2 * 8 * 128
    assert cached <= work.hbm_bytes <= 1.1 * cached
    assert work.flops == 4 * 64 * 4096 * 32 * 128


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_of_the_tuner_are_those_of_the_table(name: str) -> None:
    """The table's own sizes, given as the tuner gives them, change nothing."""
    case = getattr(cases, name)(generation="v6e", **SHAPES[name], blocks=dict(block_sizes(name, "v6e")))
    own = getattr(cases, name)(generation="v6e", **SHAPES[name])
    texts = [str(jax.make_jaxpr(each.function)(*each.abstract_args)) for each in (case, own)]
    assert len(texts[0]) == len(texts[1])
