"""A placement alone makes the decoder run on split weights: tensor and expert parallelism on virtual devices.

This is the promise that layouts are built on. The placement here is the plainest one: one mesh axis, explicit
collectives under shard_map.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distaff.backends.base import PyTree
from distaff.backends.reference import ReferenceBackend
from distaff.models.decoder import flatten, init_weights, unflatten, weight_specs
from distaff.models.families import config_from_hf
from distaff.models.kv_cache import allocate_cache
from distaff.models.placement import OneDevice
from distaff.models.row_state import RowState
from distaff.models.step import Step, StepBatch

from .step_inputs import row_state, step_batch

GOLDEN = Path(__file__).parent.parent / "golden"
BACKEND = ReferenceBackend()
TENSOR = ("heads", "kv_heads", "mlp", "vocab")


@dataclass(frozen=True)
class Split(OneDevice):
    """The logical axes named lie along the mesh axis "x"."""

    logical: tuple[str, ...]

    def reduce(self, x: jax.Array, logical: str, *, scatter: bool = False) -> jax.Array:
        return jax.lax.psum(x, "x") if logical in self.logical else x

    def gather(self, x: jax.Array, logical: str, axis: int) -> jax.Array:
        return jax.lax.all_gather(x, "x", axis=axis, tiled=True) if logical in self.logical else x

    def offset(self, logical: str, size: int) -> jax.Array | int:
        return jax.lax.axis_index("x") * size if logical in self.logical else 0

    def parts(self, logical: str) -> int:
        return 2 if logical in self.logical else 1


def inputs(groups: int, vocab_size: int) -> tuple[RowState, StepBatch]:
    ids = np.random.default_rng(1).integers(0, vocab_size, 21).tolist()
    texts = [ids[:13], ids[13:]]
    state = row_state(texts, vocab_size, temperature=[0.0, 1.0], top_k=[0, 5], seeds=[[0, 1], [0, 2]])
    return state, step_batch([(0, 13), (0, 8)], [[0, 1], [2, 3]], num_groups=groups)


# Cases whose head counts and vocabulary two devices can split; the vocabulary is cut to fit.
@pytest.mark.parametrize(
    ("case", "logical"),
    [
        pytest.param("qwen2_moe", TENSOR, marks=pytest.mark.slow),
        pytest.param("gpt_oss", TENSOR, marks=pytest.mark.slow),
        pytest.param("gpt_oss", ("expert",), marks=pytest.mark.slow),
        pytest.param("glm4_moe", ("expert",), marks=pytest.mark.slow),
        pytest.param("olmo2", TENSOR, marks=pytest.mark.slow),
        pytest.param("gemma2", TENSOR, marks=pytest.mark.slow),
    ],
)
def test_split_weights_give_the_logits_of_whole_ones(case: str, logical: tuple[str, ...]) -> None:
    hf: Mapping[str, object] = json.loads((GOLDEN / case / "config.json").read_text())
    even = {"vocab_size": 96, "num_local_experts": 6, "num_hidden_layers": 2, "layer_types": None}
    config = config_from_hf({**hf, **even})
    weights = jax.tree.map(lambda w: w * 4, init_weights(config, seed=0, dtype=jnp.float32))
    state, batch = inputs(len(config.cache_groups), config.vocab_size)

    def fresh_cache() -> PyTree:
        pages = [4] * len(config.cache_groups)
        return allocate_cache(config, BACKEND, num_pages=pages, page_size=16, dtype=jnp.float32)

    one_device = Step(config, BACKEND, num_tokens=21, num_candidates=2, return_logits=True)
    whole, *_ = jax.jit(one_device)(weights, fresh_cache(), state, batch)

    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    specs = {
        path: P(*("x" if axis in logical else None for axis in spec.axes))
        for path, spec in weight_specs(config, jnp.float32).items()
    }
    split = {path: jax.device_put(leaf, NamedSharding(mesh, specs[path])) for path, leaf in flatten(weights).items()}
    assert any("x" in spec for spec in specs.values())
    cache_spec = P(None, None, None, None, "x" if "kv_heads" in logical else None)
    step = jax.shard_map(
        replace(one_device, placement=Split(logical)),
        mesh=mesh,
        in_specs=(unflatten(specs), cache_spec, P(), P()),
        out_specs=(P(), cache_spec, P()),
        check_vma=False,
    )
    got, *_ = jax.jit(step)(unflatten(split), fresh_cache(), state, batch)
    assert whole.logits is not None and got.logits is not None and float(whole.logits.std()) > 0.3
    np.testing.assert_allclose(got.logits, whole.logits, atol=1e-4)
    np.testing.assert_array_equal(got.tokens, whole.tokens)
