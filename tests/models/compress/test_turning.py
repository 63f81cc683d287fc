"""Weights that are turned as they are loaded: within half a step of the turned model; hidden states as if unturned."""

import shutil
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import convert, open_checkpoint
from distaff.models.checkpoints.base import loading_order
from distaff.models.checkpoints.convert import Format
from distaff.models.compress import held_weights, parse_scheme, quantizer, rounded_as
from distaff.models.compress.held import HeldWeights
from distaff.models.compress.rotate import rotated
from distaff.models.compress.turning import Back, Turning
from distaff.models.decoder import Weights, flatten, unflatten, weight_specs
from distaff.models.families import config_from_hf
from distaff.serving import LLM

from ...golden.harness import CASES, GOLDEN, Golden, Text
from .test_rotate import UNTURNABLE

FAST = ("llama32", "qwen2_moe")


def held(model: Path | str, quantize: str = "int8") -> tuple[HeldWeights, Weights, Back | None]:
    checkpoint = open_checkpoint(model)
    form = held_weights(quantize, checkpoint, config_from_hf(checkpoint.hf_config))
    loaded = form.load(checkpoint, dtype=jnp.float32)
    return form, loaded.weights, loaded.hidden


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES if case not in UNTURNABLE],
)
def test_each_weight_is_within_half_a_step_of_the_turned_model(case: str) -> None:
    """Which computes what the model does (test_rotate); a table of two roles becomes two."""
    golden = Golden(GOLDEN / case)
    form, weights, _ = held(golden.folder)
    wanted, found = flatten(rotated(golden.weights(), golden.config)), flatten(weights)
    assert list(found) == list(wanted) and not form.config.tied
    assert form.roundings.keys() == {path for path, leaf in found.items() if isinstance(leaf, Quantized)}
    assert {"embedder.table", "unembedder.table"} < form.roundings.keys()
    for path, leaf in found.items():
        if isinstance(leaf, Quantized):
            step = np.broadcast_to(np.asarray(leaf.scale), wanted[path].shape)
            apart = np.abs(np.asarray(dequantized(leaf, jnp.float32)) - np.asarray(wanted[path]))
            assert (apart <= 0.501 * step).all(), path
        else:
            np.testing.assert_allclose(leaf, wanted[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("to", "name"), [("orbax", "made"), ("gguf", "made.gguf")])
def test_of_every_format_the_same_comes(to: Format, name: str, tmp_path: Path) -> None:
    """Gains of norms come before the matrices behind them, wherever a file has them."""
    convert(str(GOLDEN / "llama32"), tmp_path / name, to=to, dtype="float32")
    form, weights, _ = held(tmp_path / name)
    _, wanted, _ = held(GOLDEN / "llama32")
    assert form.turned
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), weights, wanted)


def test_a_shipped_configuration_is_turned_too(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "llama32" / "config.json", tmp_path / "tiny.json")
    form, weights, _ = held(f"random:{tmp_path}/tiny.json")
    assert form.turned and flatten(weights)["unembedder.table"].activations


def test_a_channel_that_stands_out_costs_less() -> None:
    """With a channel thirty times as large, logits err by less than two thirds of what they do unturned."""
    golden = Golden(GOLDEN / "llama32")
    flat = flatten(golden.weights())
    flat["embedder.table"] = flat["embedder.table"].at[:, 5].multiply(30.0)
    exact = Text(golden.config, unflatten(dict(flat))).feed(golden.tokens[:40])
    made = quantizer(parse_scheme("int8"), golden.config)
    turning, specs = Turning(made, golden.config), weight_specs(golden.config, jnp.float32)
    plain = {path: made(spec, jnp.array(flat[path])) for path, spec in specs.items()}
    turned = {spec.path: turning(spec, jnp.array(flat[spec.path])) for spec in loading_order(specs.values())}
    after = replace(golden.config, tied=False)
    errors = [
        float(np.sqrt(np.square(Text(config, weights).feed(golden.tokens[:40]) - exact).mean()))
        for config, weights in ((golden.config, unflatten(plain)), (after, turning.whole(unflatten(turned))))
    ]
    print(errors)
    assert errors[1] < errors[0] * 2 / 3


@pytest.mark.parametrize("case", UNTURNABLE)
def test_where_norms_forbid_it_weights_are_rounded_as_they_are(case: str) -> None:
    config = Golden(GOLDEN / case).config
    form = rounded_as("int8", config)
    assert not form.turned and form.config == config
    assert form.roundings == quantizer(parse_scheme("int8"), config).roundings(config)


@pytest.mark.parametrize("scheme", ["int8-weight", "int4:2", "fp8"])
def test_other_schemes_leave_the_stream(scheme: str) -> None:
    """A token's largest channel decides no scale of theirs, or numbers of which small ones are as exact as large."""
    assert not rounded_as(scheme, Golden(GOLDEN / "llama32").config).turned


@pytest.mark.parametrize("case", ["llama32", "qwen2_moe"])
def test_hidden_states_are_told_as_if_nothing_had_been_turned(case: str) -> None:
    def vectors(quantize: str | None) -> np.ndarray:
        with closing(LLM(GOLDEN / case, quantize=quantize, backend="cpu", max_batch=2)) as llm:
            prompts = [list(range(3, 40)), list(range(50, 61))]
            return np.stack([each.vector for pool in ("mean", "last") for each in llm.embed(prompts, pooling=pool)])

    plain, turned = vectors(None), vectors("int8")
    alike = (plain * turned).sum(axis=1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(turned, axis=1)
    assert (alike > 0.99).all(), alike
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1) / np.linalg.norm(plain, axis=1), 1, atol=0.05)
