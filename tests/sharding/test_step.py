"""A step under a layout gives the logits and tokens of one device."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend, PyTree
from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu.backend import TpuBackend
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights
from distaff.models.kv_cache import allocate_cache
from distaff.models.row_state import RowState
from distaff.models.step import Step, StepBatch, StepOutput
from distaff.sharding.backend import ShardedBackend
from distaff.sharding.check import Devices, check_layout
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import parse_layout
from distaff.sharding.shard import shard_backends

from ..models.step_inputs import row_state, step_batch
from .tiny import tiny

BACKEND = ReferenceBackend()


class MatrixProjections(ReferenceBackend):
    """Has output projections as matrices, as they are on TPUs."""

    def prepare_params(self, params: PyTree) -> PyTree:
        return TpuBackend(generation="v5e").prepare_params(params)


def inputs(config: ModelConfig, seed: int) -> tuple[RowState, StepBatch]:
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, 24).tolist()
    state = row_state([ids[:13], ids[13:]], config.vocab_size, temperature=[0.0, 1.0], top_k=[0, 5])
    return state, step_batch([(0, 13), (0, 11)], [[0, 1], [2, 3]], num_groups=len(config.cache_groups))


def run(
    config: ModelConfig, weights: Weights, backend: Backend, *, prompt: bool = False, seeds: tuple[int, ...] = (1,)
) -> StepOutput:
    """Of several replicas what each has behind the other, with texts of its own."""
    step = Step(config, backend, num_tokens=24, num_candidates=2, return_logits=True, prompt=prompt)
    pages = [4] * len(config.cache_groups)
    cache = allocate_cache(config, backend, num_pages=pages, page_size=16, dtype=jnp.float32)
    each = [inputs(config, seed) for seed in seeds]
    both = jax.tree.map(lambda *leaves: jnp.concatenate(list(map(jnp.atleast_1d, leaves))), *each)
    arguments = (backend.prepare_params(weights), cache, *(both if len(seeds) > 1 else each[0]))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return backend.compile(step, shapes, donate=(1,))(*arguments)[0]


@lru_cache
def on_one_device(case: str, *, prompt: bool) -> StepOutput:
    return run(*tiny(case), BACKEND, prompt=prompt)


def compare(case: str, text: str, *, prompt: bool = False, backend: Backend = BACKEND) -> tuple[StepOutput, StepOutput]:
    config, weights = tiny(case)
    layout = parse_layout(text, num_devices=8)
    check_layout(layout, config, Devices(8), dtype=jnp.float32)
    sharded = ShardedBackend(backend, config, jnp.dtype(jnp.float32), layout, make_mesh(layout))
    whole, split = on_one_device(case, prompt=prompt), run(config, weights, sharded, prompt=prompt)
    assert whole.logits is not None and split.logits is not None and float(whole.logits.std()) > 0.3
    np.testing.assert_allclose(split.logits, whole.logits, atol=1e-4)
    np.testing.assert_array_equal(split.tokens, whole.tokens)
    return whole, split


@pytest.mark.parametrize(
    ("case", "text"),
    [
        pytest.param("llama31", "tensor=4", marks=pytest.mark.slow),  # 2 KV heads: each is held twice
        ("gpt_oss", "expert:expert=2,tensor=2"),
        pytest.param("qwen3_moe", "tensor-scatter:tensor=4", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "tensor-2d:tensor=2,tensor2=2", marks=pytest.mark.slow),
        pytest.param("llama31", "tensor-2d:tensor=4,tensor2=2", marks=pytest.mark.slow),
        pytest.param("gemma3", "attention-ff:tensor=2,tensor2=4", marks=pytest.mark.slow),
        pytest.param("smollm2", "tensor=3", marks=pytest.mark.slow),
        pytest.param("olmo2", "stage=2,tensor=2", marks=pytest.mark.slow),
        # Five layers with a window and one without: stages of three and two, and the last layer on the second one.
        pytest.param("gemma3", "stage=2", marks=pytest.mark.slow),
        pytest.param("gemma3", "sequence=4,tensor=2", marks=pytest.mark.slow),
        pytest.param("gpt_oss", "sequence=4", marks=pytest.mark.soak),
        pytest.param("gpt_oss", "sequence-alltoall:sequence=2,tensor=2", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "weight-gathered:tensor=4", marks=pytest.mark.slow),
        *(
            pytest.param(case, text, marks=pytest.mark.soak)
            for case, text in [
                ("llama31", "tensor-scatter:tensor=2"),
                ("llama31", "attention-ff:tensor=2,tensor2=2"),
                ("qwen3_moe", "expert=4"),
                ("qwen3_moe", "expert:expert=4,tensor=2"),
                ("gpt_oss", "tensor-2d:tensor=2,tensor2=2"),
                ("gpt_oss", "tensor=4"),
                ("gpt_oss", "tensor-scatter:tensor=2"),
                ("gemma3", "tensor=4"),
                ("gemma3", "tensor-scatter:tensor=4"),
                ("olmo2", "tensor=2"),
                ("olmo2", "tensor-2d:tensor=2,tensor2=2"),
            ]
        ),
    ],
)
def test_logits_and_tokens_are_those_of_one_device(case: str, text: str) -> None:
    compare(case, text)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        pytest.param("qwen3_moe", "attention-data:data=2,tensor=2", marks=pytest.mark.slow),
        *(
            pytest.param(case, text, marks=pytest.mark.soak)
            for case, text in [
                ("llama31", "attention-data:data=2,tensor=2"),
                ("gemma3", "attention-data:data=2,tensor=2"),
                ("gpt_oss", "attention-data:data=2,tensor=2"),
                ("llama31", "data=2,stage=2,tensor=2"),
            ]
        ),
    ],
)
def test_replicas_that_step_together_give_the_logits_of_one_device(case: str, text: str) -> None:
    config, weights = tiny(case)
    backend = shard_backends(BACKEND, config, text, jnp.float32, one_program=True)[0]
    split = run(config, weights, backend, seeds=(1, 2))
    for replica, seed in enumerate((1, 2)):
        whole, rows = run(*tiny(case), BACKEND, seeds=(seed,)), slice(2 * replica, 2 * replica + 2)
        assert whole.logits is not None and split.logits is not None
        np.testing.assert_allclose(split.logits[rows], whole.logits, atol=1e-4)
        np.testing.assert_array_equal(split.tokens[rows], whole.tokens)


@pytest.mark.slow
def test_weights_are_gathered_in_the_form_that_the_backend_gives_them() -> None:
    compare("gpt_oss", "weight-gathered:tensor=4", backend=MatrixProjections())


SPLIT = (
    *("tensor=4", "tensor-scatter:tensor=4", "tensor-2d:tensor=2,tensor2=2", "attention-ff:tensor=2,tensor2=2"),
    *("sequence=4", "sequence=2,tensor=2", "sequence-alltoall:sequence=2,tensor=2", "weight-gathered:tensor=4"),
    *("stage=2,tensor=2", "stage=2,sequence=2", "pipeline+tensor-2d:stage=2,tensor=2,tensor2=2"),
)
EXPERTS = ("expert=4", "expert:expert=2,tensor=2", "stage=2,expert=2", "sequence=2,expert=2,tensor=2")
"""Each preset but those of replicas, which have an engine's batch each: test_engine.py has them."""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("case", "text"),
    [
        *((case, text) for case in ("llama31", "gemma3") for text in SPLIT),
        *((case, text) for case in ("qwen3_moe", "gpt_oss") for text in (*SPLIT, *EXPERTS)),
    ],
)
def test_every_preset_gives_the_logits_of_one_device(case: str, text: str) -> None:
    compare(case, text)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["tensor-2d:tensor=2,tensor2=2"])
def test_what_is_told_about_a_prompt_is_that_of_one_device(text: str) -> None:
    whole, split = compare("olmo2", text, prompt=True)
    assert whole.prompt is not None and split.prompt is not None
    np.testing.assert_allclose(split.prompt.hidden_sum, whole.prompt.hidden_sum, atol=1e-3)
    np.testing.assert_allclose(split.prompt.hidden_last, whole.prompt.hidden_last, atol=1e-4)
    np.testing.assert_allclose(split.prompt.logprobs.chosen, whole.prompt.logprobs.chosen, atol=1e-4)
