"""Greedy rows and those with a small top-k draw as on one device, without the whole vocabulary."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from distaff.models.row_state import RowState
from distaff.models.sampling import draw
from distaff.models.split_logits import gather_logits
from distaff.sharding.layout import Rules
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import parse_layout
from distaff.sharding.placement import MeshPlacement

from ..models.step_inputs import row_state

PARTS, VOCAB, PADDED = 4, 998, 1000
ROWS = {"temperature": [0, 1, 0.7, 1.5, 1], "top_k": [0, 5, 64, 1, 3], "seeds": [[n, n + 1] for n in range(5)]}
draw_jit = jax.jit(draw)
SLOTS, POSITIONS = jnp.arange(5, dtype=jnp.int32), jnp.full(5, 7, jnp.int32)


@pytest.mark.parametrize(
    ("changed", "gathered"),
    [
        ({}, PARTS * 64),
        ({"temperature": 0}, PARTS),
        ({"top_p": 0.5, "min_p": 0.1}, PARTS * 64),
        ({"top_k": 0}, VOCAB),
        ({"top_k": 65}, VOCAB),
        ({"num_logprobs": 0}, VOCAB),
        ({"repetition_penalty": 1.2}, VOCAB),
        ({"min_lens": 20}, VOCAB),
    ],
)
def test_tokens_are_those_of_the_whole(changed: dict[str, object], gathered: int) -> None:
    logits = np.random.default_rng(3).normal(size=(5, VOCAB)).round(2).astype(np.float32)  # many are equal
    compare(logits, row_state([[1]] * 5, VOCAB, **{**ROWS, **changed}), gathered)


def test_equals_at_the_edge_of_top_k_are_all_there() -> None:
    logits = np.random.default_rng(4).normal(size=(5, VOCAB)).astype(np.float32)
    logits[4] = 0
    compare(logits, row_state([[1]] * 5, VOCAB, **ROWS), VOCAB)


@cache
def collector() -> Callable[[Array, RowState], Array]:
    placement = MeshPlacement(Rules.of(vocab=("tensor",)), (("tensor", PARTS),), VOCAB)

    def collect(part: Array, state: RowState) -> Array:
        return gather_logits(part, placement, VOCAB, state, SLOTS, POSITIONS)

    mesh, specs = make_mesh(parse_layout(f"tensor={PARTS}", num_devices=8)), (P(None, "tensor"), P())
    return jax.jit(jax.shard_map(collect, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))


def compare(logits: np.ndarray, state: RowState, gathered: int) -> None:
    """Draws from the parts as from the whole, and counts how many logits were gathered for each row."""
    found = collector()(jnp.pad(logits, ((0, 0), (0, PADDED - VOCAB)), constant_values=99), state)
    assert np.isfinite(found).sum(axis=1).tolist() == [gathered] * 5
    tokens, logprobs = draw_jit(found, state, SLOTS, POSITIONS)
    expected = draw_jit(jnp.asarray(logits), state, SLOTS, POSITIONS)
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_array_equal(logprobs.chosen, expected[1].chosen)
