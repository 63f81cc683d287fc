"""Smaller models compute what the larger one does with the missing parts set to nothing."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress.calibrate import calibrate
from distaff.models.compress.layers import places, stacked, unstacked
from distaff.models.compress.prune import Pruning, parse_pruning
from distaff.models.compress.prune_structure import angular_distances, narrowed, shortened
from distaff.models.compress.smaller import smaller_hf
from distaff.models.families import config_from_hf

from ...golden.harness import GOLDEN, Golden, Text

NARROWED = {
    "llama31": ("heads", "query-heads", "channels"),
    "opt": ("channels",),
    "gemma2": ("heads", "channels"),
    "phi3": ("heads", "channels"),
    "gpt_oss": ("heads",),
    "cohere": ("query-heads",),
    "qwen3": ("query-heads",),
}
CASES = [(case, pattern) for case, patterns in NARROWED.items() for pattern in patterns]


def logits(golden: Golden, weights: object, config: object) -> np.ndarray:
    return Text(config, weights).feed(golden.tokens[:24])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("method", ["wanda", pytest.param("magnitude", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("case", "pattern"), [c if c == CASES[0] else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_a_narrower_model_is_the_wide_one_with_parts_at_zero(case: str, pattern: str, method: str) -> None:
    golden = Golden(GOLDEN / case)
    config, weights = golden.config, golden.weights()
    pruning = Pruning(pattern, method, 0.5)
    inputs = calibrate(config, weights, [golden.tokens[:32]]) if method == "wanda" else {}
    made, small = narrowed(weights, config, pruning, inputs)
    assert small != config and smaller_config(golden, small) == small

    # What goes is found again by its numbers; the matrix that projects back then gets zeros for it.
    wide, thin, where = unstacked(weights, config), unstacked(made, small), places(config)
    last = "mlp.down.weight" if pattern == "channels" else "attention.o.weight"
    for key, layer in where:
        if key == last:
            old, new = wide[key, layer], thin[key, layer]
            units, kept = np.moveaxis(old, 1, 0), np.moveaxis(new, 1, 0)
            here = [any(np.array_equal(unit, one) for one in kept) for unit in units]
            assert sum(here) == len(kept) < len(units)
            wide[key, layer] = np.where(np.reshape(here, (1, -1) + (1,) * (old.ndim - 2)), old, 0)
    np.testing.assert_allclose(
        logits(golden, made, small), logits(golden, stacked(wide, config), config), rtol=1e-4, atol=1e-4
    )


def smaller_config(golden: Golden, small: object) -> object:
    hf = open_checkpoint(golden.folder).hf_config
    made = smaller_hf(hf, golden.config, small, range(golden.config.num_layers))  # pyright: ignore[reportArgumentType]
    return config_from_hf(made)


@pytest.mark.parametrize("pattern", ["channels", pytest.param("query-heads", marks=pytest.mark.slow)])
def test_what_makes_good_for_the_rest_is_nearer(pattern: str) -> None:
    """The outputs of the first layer's matrix that projects back, on the text that was read."""
    golden = Golden(GOLDEN / "llama31")
    config, weights = golden.config, golden.weights()
    inputs = calibrate(config, weights, [golden.tokens])
    last = "mlp.down.weight" if pattern == "channels" else "attention.o.weight"
    old = unstacked(weights, config)[last, 0].reshape(config.embed_dim, -1)
    products = inputs[places(config)[last, 0]].products
    errors = {}
    for method in ("wanda", "sparsegpt"):
        made, small = narrowed(weights, config, Pruning(pattern, method, 0.5), inputs)
        new, spread = unstacked(made, small), np.zeros_like(old)
        before = "mlp.up.weight" if pattern == "channels" else "attention.q.weight"
        size = old.shape[1] // len(unstacked(weights, config)[before, 0])
        for place, unit in enumerate(unstacked(weights, config)[before, 0]):
            for number, one in enumerate(new[before, 0]):
                if np.array_equal(unit, one):
                    columns = new[last, 0].reshape(len(old), -1)[:, number * size : (number + 1) * size]
                    spread[:, place * size : (place + 1) * size] = columns
        errors[method] = np.einsum("NK,KJ,NJ->", old - spread, products, old - spread)
    assert errors["sparsegpt"] < 0.8 * errors["wanda"]


@pytest.mark.parametrize(
    "case", ["gemma2", *(pytest.param(c, marks=pytest.mark.slow) for c in ("llama31", "smollm3", "gpt_oss", "olmo2"))]
)
def test_a_shorter_model_is_the_long_one_whose_layers_add_nothing(case: str) -> None:
    golden = Golden(GOLDEN / case)
    config, weights = golden.config, golden.weights()
    kept = [layer for layer in range(config.num_layers) if layer != 1]
    made, small = shortened(weights, config, kept)
    hf = smaller_hf(open_checkpoint(golden.folder).hf_config, config, small, kept)
    assert config_from_hf(hf) == small and small.num_layers == config.num_layers - 1
    silent = unstacked(weights, config)
    for key, layer in silent:
        if layer == 1 and key.startswith(("attention.o.", "mlp.down.", "mlp.experts.down")):
            silent[key, layer] = np.zeros_like(silent[key, layer])
    np.testing.assert_allclose(
        logits(golden, made, small), logits(golden, stacked(silent, config), config), rtol=1e-4, atol=1e-4
    )


def test_distances_are_angles_between_what_goes_in_and_comes_out() -> None:
    """Hidden states are those of models that end earlier."""
    golden = Golden(GOLDEN / "llama31")
    config, weights, window = golden.config, golden.weights(), golden.tokens[:16]
    found = angular_distances(config, weights, [window[:10], window], 2)
    assert found.shape == (config.num_layers - 1,)
    states = [hidden(golden, upto, window) for upto in range(config.num_layers + 1)]
    states = [np.concatenate([state[:10], state]) for state in states]  # the first window begins as the second does
    for start, distance in enumerate(found):
        a, b = states[start], states[start + 2]
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert distance == pytest.approx((np.arccos(cosine) / np.pi).mean(), rel=1e-4)


def hidden(golden: Golden, upto: int, window: list[int]) -> np.ndarray:
    """The residual stream behind some layers, by the decoder of a model that has no more, without a last norm."""
    from distaff.backends.reference import ReferenceBackend
    from distaff.models.decoder import bind
    from distaff.models.kv_cache import RaggedBatch, allocate_cache
    from distaff.models.layers import Machine
    from distaff.models.placement import OneDevice

    if upto == 0:
        table = unstacked(golden.weights(), golden.config)["embedder.table", None]
        return table[window] * golden.config.embed_scale
    made, config = shortened(golden.weights(), golden.config, list(range(upto)))
    config = replace(config, final_norm=None)
    made.pop("final_norm")
    backend = ReferenceBackend()
    pages = -(-len(window) // backend.page_size)
    cache = allocate_cache(config, backend, num_pages=[pages], page_size=backend.page_size, dtype=jnp.float32)
    batch = RaggedBatch.single(window, 0, num_tokens=len(window), num_pages=pages, num_groups=1)
    return np.asarray(bind(config, made)(batch, cache, Machine(backend, OneDevice()))[0])


def test_layers_are_chosen_by_angle_alone() -> None:
    assert parse_pruning("layers", None, 0.2) == Pruning("layers", None, 0.2)
