"""Attention as one operation: against the reference's, over ragged batches, in place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import AttentionSpec, RaggedIndex
from distaff.backends.reference import ReferenceBackend
from distaff.backends.torch import attention
from distaff.backends.torch.lowered import Target

from .running import lowered, on_torch

PAGE, PAGES = 4, 12


def case(lens: list[int], counts: list[int], *, tokens: int, dtype: str = "float32") -> tuple[Any, ...]:
    rng = np.random.default_rng(sum(lens))
    table = rng.permutation(PAGES).reshape(len(lens), -1).astype(np.int32)
    q, k, v = (rng.normal(size=(tokens, heads, 8)).astype(jnp.dtype(dtype)) for heads in (6, 2, 2))
    cache = rng.normal(size=(2, PAGES, PAGE, 2, 2, 8)).astype(jnp.dtype(dtype))
    starts = np.cumsum([0, *counts]).astype(np.int32)
    return q, k, v, cache, table, starts, np.asarray(lens, np.int32), rng.normal(size=6).astype(np.float32)


SPECS = [
    AttentionSpec(0.3),
    AttentionSpec(0.3, window=3),
    AttentionSpec(0.3, soft_cap=2.0),
    AttentionSpec(0.3, window=5),
]


@pytest.mark.parametrize("target", [Target(), Target(reads_values=False)], ids=["reads", "static"])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    ("lens", "counts", "bound"),
    [([9, 5, 12], [4, 1, 7], None), ([9, 5, 12], [1, 1, 1], 1), ([7, 0, 0], [1, 0, 0], 1), ([0, 0, 0], [0, 0, 0], None),
     ([8, 3, 0], [8, 3, 0], None)],
)  # fmt: skip
def test_it_attends_and_writes_as_the_reference_does(
    lens: list[int], counts: list[int], bound: int | None, spec: AttentionSpec, sinks: bool, target: Target
) -> None:
    args = case(lens, counts, tokens=3 if bound else 16)

    def call(q: Any, k: Any, v: Any, cache: Any, table: Any, starts: Any, lens: Any, sink: Any) -> Any:
        index = RaggedIndex(table, starts, lens, bound)
        attend = ReferenceBackend().ragged_attention
        return attend(q, k, v, cache, jnp.int32(1), index, spec, sink if sinks else None)

    want, got = jax.jit(call)(*args), on_torch(call, *args, target=target)
    np.testing.assert_allclose(got[0], want[0], atol=2e-6)
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("block", [3, 4])
def test_prompts_are_computed_in_blocks(
    block: int, spec: AttentionSpec, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK", block)
    test_it_attends_and_writes_as_the_reference_does([9, 5, 15], [8, 1, 7], None, spec, sinks, Target())


@pytest.mark.parametrize("target", [Target(), Target(reads_values=False)], ids=["reads", "static"])
def test_a_mask_of_the_callers(target: Target) -> None:
    args = case([9, 5, 12], [4, 1, 7], tokens=16)
    mask = np.random.default_rng(0).random((16, 8)) < 0.5
    mask[np.arange(16), [*range(4), 0, *range(7), *[0] * 4]] = True

    def call(q: Any, k: Any, v: Any, cache: Any, table: Any, starts: Any, lens: Any, mask: Any) -> Any:
        index = RaggedIndex(table, starts, lens, None, mask)
        return ReferenceBackend().ragged_attention(q, k, v, cache, jnp.int32(0), index, AttentionSpec(0.3, window=6))

    want, got = jax.jit(call)(*args[:-1], mask), on_torch(call, *args[:-1], mask, target=target)
    np.testing.assert_allclose(got[0], want[0], atol=2e-6)


@pytest.mark.parametrize("target", [Target(), Target(reads_values=False)], ids=["reads", "static"])
def test_attention_without_a_cache(target: Target) -> None:
    rng, lengths = np.random.default_rng(0), np.asarray([20, 7], np.int32)
    q, k, v = (rng.normal(size=(2, 20, heads, 16)).astype(np.float32) for heads in (6, 2, 2))

    def call(q: Any, k: Any, v: Any, lengths: Any) -> Any:
        return ReferenceBackend().dense_attention(q, k, v, AttentionSpec(0.3), lengths=lengths)

    want = jax.jit(call)(q, k, v, lengths)
    np.testing.assert_allclose(on_torch(call, q, k, v, lengths, target=target), want, atol=2e-6)


def test_it_is_one_operation_of_the_graph() -> None:
    def call(q: Any, k: Any, v: Any, cache: Any, table: Any, starts: Any, lens: Any, sink: Any) -> Any:
        return ReferenceBackend().ragged_attention(
            q, k, v, cache, jnp.int32(0), RaggedIndex(table, starts, lens), AttentionSpec(0.3)
        )

    built = lowered(call, *case([9, 5, 12], [4, 1, 7], tokens=16), given=(3,))
    names = [node.target for node in built.module.graph.nodes if node.op.startswith("call")]
    assert names == ["attention_0"] and built.writes == {3}
