"""The decoder as a whole: its weights as data, published sizes, and programs whose size does not grow with depth."""

import json
import time
from dataclasses import replace
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from distaff.backends.aot import compile_ahead
from distaff.backends.base import PyTree
from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import shipped_configs
from distaff.models.config import ModelConfig
from distaff.models.decoder import flatten, init_weights, unflatten, weight_specs
from distaff.models.families import FAMILIES, config_from_hf, family_named
from distaff.models.kv_cache import allocate_cache
from distaff.models.row_state import RowState
from distaff.models.step import Step, StepBatch

from ..golden.harness import CASES
from .step_inputs import row_state, step_batch

GOLDEN = Path(__file__).parent.parent / "golden"
BACKEND = ReferenceBackend()


def read(case: str, **changes: object) -> ModelConfig:
    return config_from_hf(json.loads((GOLDEN / case / "config.json").read_text()) | changes)


def one_row(config: ModelConfig, tokens: list[int], *, num_pages: int = 1) -> tuple[RowState, StepBatch]:
    batch = step_batch([(0, len(tokens))], [list(range(num_pages))], num_groups=len(config.cache_groups))
    return row_state([tokens], config.vocab_size, max_len=32), batch


def abstract_step(config: ModelConfig, dtype: DTypeLike) -> tuple[Step, tuple[PyTree, ...]]:
    """The step and the shapes of its arguments: one row of 16 tokens, eight pages."""
    pages = [8] * len(config.cache_groups)
    specs = weight_specs(config, dtype).values()
    weights = unflatten({spec.path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs})
    rest = jax.eval_shape(
        lambda: (
            allocate_cache(config, BACKEND, num_pages=pages, page_size=16, dtype=dtype),
            *one_row(config, [0] * 16, num_pages=8),
        )
    )
    return Step(config, BACKEND, num_tokens=16), (weights, *rest)


PUBLISHED = {
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.55e9,
    "qwen3-30b-a3b": 30.53e9,
    "gemma-3-27b": 27.01e9,
    "gpt-oss-20b": 20.91e9,
    "palm-62b": 62.50e9,
    "palm-540b": 540.35e9,
}


def test_every_shipped_configuration_has_the_published_number_of_weights() -> None:
    assert set(shipped_configs()) == set(PUBLISHED)
    for name, path in shipped_configs().items():
        config = config_from_hf(json.loads(path.read_text()), source=path.name)
        count = sum(prod(spec.shape) for spec in weight_specs(config, jnp.bfloat16).values())
        assert count == pytest.approx(PUBLISHED[name], rel=0.002), name


@pytest.mark.parametrize("case", ["gpt_oss", "glm4_moe", "opt_350m"])
def test_weights_are_described_before_they_exist(case: str) -> None:
    config = read(case)
    specs = weight_specs(config, jnp.float32)
    weights = init_weights(config, seed=0, dtype=jnp.float32)
    flat = flatten(weights)
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in flat.items()} == {
        path: (spec.shape, spec.dtype) for path, spec in specs.items()
    }
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(weights)
    table = family_named(config.family).tensors(config)
    for spec in specs.values():
        assert spec.key in table, f"{case}: no checkpoint tensor for {spec.key}"
        assert len(spec.axes) == len(spec.shape) and (spec.axes[0] == "layers") == (spec.layers is not None)
    layers = sorted({i for spec in specs.values() for i in spec.layers or ()})
    assert layers == list(range(config.num_layers))


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = read("llama2")
    first, again, other = (flatten(init_weights(config, seed=seed, dtype=jnp.bfloat16)) for seed in (1, 1, 2))
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[path])
    assert any((np.asarray(leaf) != np.asarray(other[path])).any() for path, leaf in first.items())


@pytest.mark.slow
def test_a_residual_scale_multiplies_every_branch() -> None:
    """With the scale at zero the layers leave no trace, whatever they compute."""
    config = read("llama2")
    weights = jax.tree.map(lambda w: w * 6, init_weights(config, seed=0, dtype=jnp.float32))
    state, batch = one_row(config, [5, 6])

    def logits(config: ModelConfig) -> np.ndarray:
        cache = allocate_cache(config, BACKEND, num_pages=[1], page_size=16, dtype=jnp.float32)
        step = Step(config, BACKEND, num_tokens=2, return_logits=True)
        output, *_ = jax.jit(step)(weights, cache, state, batch)
        return np.asarray(output.logits)

    nothing = logits(replace(config, residual_scale=0.0))
    x = weights["embedder"]["table"][6]
    x = x / jnp.sqrt((x * x).mean() + 1e-5) * weights["final_norm"]["scale"]
    np.testing.assert_allclose(nothing[0, 0], weights["unembedder"]["table"] @ x, rtol=1e-4, atol=1e-4)
    half = logits(replace(config, residual_scale=0.5))
    assert np.abs(half - logits(config)).max() > 0.01 < np.abs(half - nothing).max()


DEPTHS = (4, 32)


@pytest.mark.parametrize("case", ["smollm2", "gpt_oss"])
def test_a_deeper_model_is_not_a_larger_program(case: str) -> None:
    """32 layers lower to the same operations as 4: the layers are scanned."""

    def operations(num_layers: int) -> list[str]:
        step, args = abstract_step(read(case, num_hidden_layers=num_layers, layer_types=None), jnp.float32)
        lowered = jax.jit(step).lower(*args).as_text()
        return [line.split("=")[-1].split()[0] for line in lowered.splitlines() if "=" in line]

    shallow, deep = (operations(num_layers) for num_layers in DEPTHS)
    assert shallow == deep and len(deep) > 100


@pytest.mark.slow
@pytest.mark.parametrize("target", ["reference", "v6e:2x2"])
def test_compile_time_does_not_grow_with_depth(target: str) -> None:
    """32 layers leave the compiler with a program of 4 layers' size: what it has to work on, not how long it took."""
    if target != "reference":
        pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    width = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}

    def compiled(num_layers: int) -> int:
        config = read("smollm2", num_hidden_layers=num_layers, vocab_size=1024, **width)
        step, args = abstract_step(config, jnp.float32 if target == "reference" else jnp.bfloat16)
        start = time.process_time()
        if target == "reference":
            program = jax.jit(step, donate_argnums=(1,)).lower(*args).compile()
        else:
            program = compile_ahead(step, args, target, donate=(1,))
        text = program.as_text()
        assert text is not None
        size = sum(" = " in line for line in text.splitlines())
        print(f"{target}: {num_layers} layers, {size} instructions, {time.process_time() - start:.2f} s")
        return size

    shallow, deep = (compiled(num_layers) for num_layers in DEPTHS)
    assert 100 < deep < 1.02 * shallow


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_family_compiles_for_a_tpu(case: str) -> None:
    pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")
    step, args = abstract_step(read(case), jnp.bfloat16)
    program = compile_ahead(step, args, "v6e:2x2", donate=(1,))
    # The cache is donated: what comes in goes out in the same memory.
    cache_bytes = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(args[1]))
    assert program.memory_analysis().alias_size_in_bytes >= cache_bytes


def test_families_have_distinct_names_and_types() -> None:
    names = [family.name for family in FAMILIES]
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(set(names)) == len(names) and len(set(types)) == len(types)
