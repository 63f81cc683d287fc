"""A turned stream changes no logit, and no channel of it stands out; what cannot be turned is refused by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress import parse_scheme, quantizer
from distaff.models.compress.calibrate import Passage, layer_paths
from distaff.models.compress.rotate import check_rotatable, rotated, untied
from distaff.models.compress.saving import check_head
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights, flatten, unflatten

from ...golden.harness import CASES, GOLDEN, Golden, Text

UNTURNABLE = ("cohere", "gemma2", "gemma3", "gemma3_published", "olmo2", "opt", "opt_350m", "opt_gelu")
FAST = ("llama32", "qwen2_moe")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES if case not in UNTURNABLE],
)
def test_a_turned_model_computes_the_same(case: str) -> None:
    """Experts that are shared and chosen, biases of what is added to the stream, tables of one or two roles."""
    golden = Golden(GOLDEN / case)
    check_rotatable(golden.config)
    _, config = untied(open_checkpoint(golden.folder).hf_config, golden.config)
    before, made = flatten(golden.weights()), rotated(golden.weights(), golden.config)
    after = flatten(made)
    assert not config.tied and set(after) == {*before, "unembedder.table"}
    for path in ("embedder.table", "segments.0.layers.0.attention.o.weight", "segments.0.layers.0.attention.q.weight"):
        assert not np.allclose(after[path], before[path], atol=1e-3)
    logits = Text(config, made).feed(golden.tokens[:40])
    np.testing.assert_allclose(logits, golden.logits[:40], atol=2e-4 * max(1, golden.logits.std()))


def test_a_channel_that_stands_out_is_spread() -> None:
    """One of the stream's is made thirty times as large by the table, and the error of rounded tokens shrinks."""
    golden = Golden(GOLDEN / "llama32")
    flat = flatten(golden.weights())
    flat["embedder.table"] = flat["embedder.table"].at[:, 5].multiply(30.0)
    _, config = untied(open_checkpoint(golden.folder).hf_config, golden.config)

    def weights() -> Weights:
        return unflatten({path: jnp.array(leaf) for path, leaf in flat.items()})

    def peak(config: ModelConfig, weights: Weights) -> float:
        """Of the first layer's inputs, the largest over the root mean square."""
        leaves = flatten(weights)
        entries = {key: leaves[path][number] for key, (path, number) in layer_paths(config)[0].items()}
        seen = Passage(config, weights, [golden.tokens[:24]], samples=True).watch(0, entries)
        rows = np.concatenate(seen["attention.q.weight"][0].rows)
        return float(np.mean(np.abs(rows).max(axis=1) / np.sqrt(np.square(rows).mean(axis=1))))

    turned = rotated(weights(), golden.config)
    assert peak(golden.config, weights()) > 4.5 and peak(config, turned) < 3.5


@pytest.mark.parametrize("case", UNTURNABLE)
def test_other_norms_are_refused_by_name(case: str) -> None:
    config = Golden(GOLDEN / case).config
    with pytest.raises(UnsupportedError, match=f"family {config.family}: a stream can be turned where RMSNorm"):
        check_rotatable(config)


def test_a_head_is_a_matrix_of_its_own_and_of_eight_bits() -> None:
    config = Golden(GOLDEN / "llama32").config
    assert config.tied
    with pytest.raises(InvalidParameterError, match="whose table scores no vocabulary, as behind --rotate"):
        check_head(parse_scheme("int8"), config)
    _, own = untied(open_checkpoint(GOLDEN / "llama32").hf_config, config)
    for scheme in ("int4:4", "int8-weight:8"):
        with pytest.raises(InvalidParameterError, match=f"a scale for each output, not {scheme}"):
            check_head(parse_scheme(scheme), own)
    check_head(parse_scheme("int8"), own)
    assert quantizer(parse_scheme("int8"), own, head=True).roundings(own)["unembedder.table"].activations
