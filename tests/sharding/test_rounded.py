"""Weights of fewer bits under a layout: numbers and scales lie where the layout says, and steps compute with them."""

from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.quantized import Quantized
from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import open_checkpoint, stored_numbers
from distaff.models.compress import held_weights, parse_scheme, quantizer
from distaff.models.compress.saving import write_quantized
from distaff.models.decoder import Weights, flatten, unflatten, weight_specs
from distaff.serving import LLM, SamplingParams
from distaff.sharding.backend import ShardedBackend
from distaff.sharding.errors import IndivisibleError, UnsupportedLayoutError
from distaff.sharding.footprint import footprint
from distaff.sharding.parsing import parse_layout
from distaff.sharding.shard import shard_backends

from ..golden.harness import Golden
from .test_step import MatrixProjections, run
from .tiny import GOLDEN, tiny

SCHEMES = ("int8-weight", "int4:4", "int8")
LAYOUTS = ("tensor=4", "weight-gathered:tensor=4", "stage=2,tensor=2", "tensor-2d:tensor=2,tensor2=2")


def rounded(case: str, scheme: str) -> Weights:
    """A model's weights, rounded to nearest."""
    config, weights = tiny(case)
    made, specs = quantizer(parse_scheme(scheme), config), weight_specs(config, jnp.float32)
    return unflatten({path: made(specs[path], jnp.array(leaf)) for path, leaf in flatten(weights).items()})


def under(case: str, scheme: str, layout: str, inner: Backend) -> ShardedBackend:
    config, _ = tiny(case)
    roundings = quantizer(parse_scheme(scheme), config).roundings(config)
    return shard_backends(inner, config, layout, jnp.dtype(jnp.float32), one_program=True, roundings=roundings)[0]


@lru_cache
def logits(case: str, scheme: str | None) -> np.ndarray:
    config, weights = tiny(case)
    found = run(config, weights if scheme is None else rounded(case, scheme), ReferenceBackend()).logits
    assert found is not None
    return np.asarray(found)


def pairs() -> list[Any]:
    quick = {("llama31", "int8-weight", "tensor=4"), ("llama31", "int8", "tensor=4"), ("gpt_oss", "int4:4", "tensor=4")}
    every = [(case, scheme, layout) for case in ("llama31", "gpt_oss") for scheme in SCHEMES for layout in LAYOUTS]
    every += [("gpt_oss", scheme, "expert:expert=2,tensor=2") for scheme in SCHEMES]
    return [
        pytest.param(*each, marks=pytest.mark.slow if each in quick else pytest.mark.soak)
        for each in every
        # The 44 channels of llama31's feed-forward are 11 groups of 4: refused by name, as gathered groups are (below).
        if not (each[1].startswith("int4") and (each[0] == "llama31" or each[2].startswith("weight-gathered")))
    ]


@pytest.mark.parametrize(("case", "scheme", "layout"), pairs())
def test_logits_are_those_of_one_device(case: str, scheme: str, layout: str) -> None:
    """Exactly so, but for activations: where a token is cut, each part of it has a scale of its own."""
    config, _ = tiny(case)
    found = run(config, rounded(case, scheme), under(case, scheme, layout, ReferenceBackend())).logits
    assert found is not None
    whole, exact = logits(case, scheme), logits(case, None)
    if scheme != "int8":
        np.testing.assert_allclose(found, whole, atol=1e-4)
        assert np.abs(whole - exact).max() > 1e-2
        return
    error, of_one = (float(np.abs(each - exact).mean()) for each in (np.asarray(found), whole))
    print(f"mean error {error:.4f}, on one device {of_one:.4f}")
    assert 0 < error < 1.3 * of_one


@pytest.mark.slow
def test_projections_to_heads_are_gathered_as_the_matrices_that_tpus_have() -> None:
    backend = under("llama31", "int8-weight", "weight-gathered:tensor=4", MatrixProjections())
    found = run(tiny("llama31")[0], rounded("llama31", "int8-weight"), backend).logits
    assert found is not None
    np.testing.assert_allclose(found, logits("llama31", "int8-weight"), atol=1e-4)


@pytest.mark.parametrize("scheme", ["int8-weight", "int4:2"])
def test_each_device_holds_its_part(scheme: str) -> None:
    """Of numbers as of the weight, of scales those of its numbers; the arithmetic of footprint is what is there."""
    backend = under("llama31", scheme, "tensor=2", ReferenceBackend())
    prepared = backend.prepare_params(rounded("llama31", scheme))
    first = jax.devices()[0]

    def part(leaf: jax.Array) -> tuple[int, ...]:
        return next(shard.data.shape for shard in leaf.addressable_shards if shard.device == first)

    held = flatten(prepared)
    down, up = (held[f"segments.0.layers.0.mlp.{name}.weight"] for name in ("down", "up"))
    assert isinstance(down, Quantized) and isinstance(up, Quantized)
    groups = 1 if scheme == "int8-weight" else up.shape[-1] // 2
    assert part(up.scale) == (*part(up.values)[:-1], groups)
    assert part(down.values)[-1] * 2 == down.values.shape[-1]
    assert part(down.scale)[-1] == max(down.scale.shape[-1] // 2, 1)
    there = sum(prod(part(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(prepared))
    config, _ = tiny("llama31")
    told = footprint(config, parse_layout("tensor=2", num_devices=2), jnp.float32, roundings=backend.roundings)
    assert there == told.weights < footprint(config, parse_layout("tensor=2", num_devices=2), jnp.float32).weights


@pytest.mark.parametrize(
    ("scheme", "layout", "error", "message"),
    [
        ("int4:4", "tensor=4", IndivisibleError, r"down.weight in int4: .* do not divide into 4 parts"),
        ("int4:2", "weight-gathered:tensor=2", UnsupportedLayoutError, "scales for groups are not gathered"),
        ("int4:4", "stage=2,tensor=2", IndivisibleError, "44 of mlp do not divide into 2 parts"),
        ("int4:4", "tensor-2d:tensor=2,tensor2=2", IndivisibleError, "44 of mlp do not divide into 2 parts"),
    ],
)
def test_what_cannot_lie_there_is_refused_by_name(
    scheme: str, layout: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        under("llama31", scheme, layout, ReferenceBackend())


@pytest.mark.parametrize(
    ("case", "scheme"),
    [
        ("gemma2", "int8"),
        pytest.param("gemma2", "int4:4", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "int8", marks=pytest.mark.slow),
    ],
)
def test_stored_numbers_are_read_where_they_belong(case: str, scheme: str, tmp_path: Path) -> None:
    """Unexpanded, each device its part; what is there beforehand is what was told."""
    config, source = Golden(GOLDEN / case).config, open_checkpoint(GOLDEN / case)
    found = replace(parse_scheme(scheme), tables=None)
    weights = source.load_weights(config, dtype=jnp.float32, made=quantizer(found, config))
    write_quantized(weights, found, tmp_path, config=config, source=source, told={})
    checkpoint = open_checkpoint(tmp_path)
    roundings = stored_numbers(checkpoint, config).roundings
    (backend,) = shard_backends(ReferenceBackend(), config, "tensor=2", jnp.dtype(jnp.float32), roundings=roundings)
    whole = flatten(checkpoint.load_weights(config, dtype=jnp.float32, keep=roundings))
    parts = flatten(checkpoint.load_weights(config, dtype=jnp.float32, keep=roundings, place=backend.place))
    assert roundings.keys() == {path for path, leaf in whole.items() if isinstance(leaf, Quantized)}
    for path in roundings:
        both = whole[path], parts[path]
        for one, split in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(split))
        assert len(parts[path].values.sharding.device_set) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "options"), [("cpu", {"kv_dtype": "int8"}), pytest.param("reference", {}, marks=pytest.mark.soak)]
)
def test_an_llm_under_a_layout_writes_the_tokens_of_one_device(backend: str, options: dict[str, Any]) -> None:
    """With weights, and on the CPU a cache, of 8 bits, rounded as they are loaded."""
    prompts = [list(range(3, 20)), list(range(40, 77))]
    greedy = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)

    def texts(layout: str | None) -> list[tuple[int, ...]]:
        given = {"backend": backend, "layout": layout, "max_batch": 2, "context": 64, **options}
        with closing(LLM(GOLDEN / "llama31", quantize="int8-weight", **given)) as llm:
            return [tuple(llm.stream(prompt, greedy).completion().token_ids) for prompt in prompts]

    assert texts("tensor=2") == texts(None)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        ("smollm3", "tensor=2"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("llama31", "stage=2,tensor=2"),
                ("llama31", "weight-gathered:tensor=4"),
                ("granite", "tensor-2d:tensor=2,tensor2=2"),
                ("qwen3_moe", "expert:expert=2,tensor=2"),
            )
        ),
    ],
)
def test_a_stream_is_turned_where_its_leaves_lie(case: str, layout: str) -> None:
    """Each device turns its part: numbers are those of one device, but for some that lie between two."""
    checkpoint = open_checkpoint(GOLDEN / case)
    form = held_weights("int8", checkpoint, Golden(GOLDEN / case).config)
    (backend,) = shard_backends(
        ReferenceBackend(), form.config, layout, jnp.dtype(jnp.float32), one_program=True, roundings=form.roundings
    )
    whole = form.load(checkpoint, dtype=jnp.float32)
    split = form.load(checkpoint, dtype=jnp.float32, place=backend.place)
    assert form.turned and whole.hidden is not None and split.hidden is not None
    np.testing.assert_allclose(whole.hidden.gain, split.hidden.gain)
    wanted, found = flatten(backend.placed(whole.weights)), flatten(split.weights)
    for path in form.roundings:
        one, other = (np.asarray(each[path].values, np.int32) for each in (wanted, found))
        inside = np.abs(one) < 127  # the largest of a row, where it is negative, always lies between two
        assert np.abs(one - other).max() <= 1 and (one != other)[inside].mean() < 1e-3, path
        there = np.asarray(wanted[path].scale) > 0  # and not padding
        np.testing.assert_allclose(wanted[path].scale[there], found[path].scale[there], rtol=1e-5)
        assert len(found[path].values.sharding.device_set) == backend.layout.num_devices
