"""Checkpoints that we round and write are read back with every number as it was."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from distaff.backends.errors import UnsupportedError
from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import open_checkpoint, stored_numbers
from distaff.models.compress import Quantizer, parse_scheme, quantizer
from distaff.models.compress.saving import check_writable, write_quantized
from distaff.models.decoder import flatten

from ...golden.harness import GOLDEN, Golden


@pytest.mark.parametrize(
    "scheme", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8-weight", "int4:4", "fp8"))]
)
@pytest.mark.parametrize(
    "case", ["gemma2", pytest.param("phi3", marks=pytest.mark.slow), pytest.param("qwen3_moe", marks=pytest.mark.slow)]
)
def test_what_is_written_is_read_back(case: str, scheme: str, tmp_path: Path) -> None:
    golden = Golden(GOLDEN / case)
    found = replace(parse_scheme(scheme), tables=None)
    if (case, scheme) in (("phi3", "int4:4"), ("qwen3_moe", "int4:4"), ("qwen3_moe", "int8-weight")):
        pytest.skip("its rows do not fill words")
    source = open_checkpoint(golden.folder)
    check_writable(Quantizer(found), golden.config)
    weights = source.load_weights(golden.config, dtype=jnp.float32, made=quantizer(found, golden.config))
    write_quantized(weights, found, tmp_path, config=golden.config, source=source, told={"scheme": scheme})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["distaff"] == {"scheme": scheme} and config.get("dtype", config.get("torch_dtype")) == "float32"
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "lm_head" in config["quantization_config"]["ignore"] or golden.config.tied
    written = open_checkpoint(tmp_path)
    stored = stored_numbers(written, golden.config).roundings
    kept = flatten(written.load_weights(golden.config, dtype=jnp.float32, keep=stored))
    expanded = flatten(open_checkpoint(tmp_path).load_weights(golden.config, dtype=jnp.float32))
    for path, leaf in flatten(weights).items():
        assert isinstance(kept[path], Quantized) == isinstance(leaf, Quantized), path
        if isinstance(leaf, Quantized):
            assert (kept[path].kind, kept[path].activations) == (leaf.kind, leaf.activations)
            np.testing.assert_array_equal(np.asarray(kept[path].values), np.asarray(leaf.values))
            np.testing.assert_array_equal(kept[path].scale, leaf.scale)
            np.testing.assert_allclose(expanded[path], dequantized(leaf), rtol=1e-6)
        else:
            np.testing.assert_array_equal(kept[path], leaf)


def test_four_bits_are_packed_as_the_format_says(tmp_path: Path) -> None:
    """Eight numbers in a word, the first in its lowest bits, each with 8 added."""
    golden = Golden(GOLDEN / "gemma2")
    found = replace(parse_scheme("int4:4"), tables=None)
    source = open_checkpoint(golden.folder)
    weights = source.load_weights(golden.config, dtype=jnp.float32, made=quantizer(found, golden.config))
    write_quantized(weights, found, tmp_path, config=golden.config, source=source, told={})
    stored = load_file(tmp_path / "model.safetensors")
    base = "model.layers.1.mlp.gate_proj.weight"
    packed, scale, shape = (stored[f"{base}_{part}"] for part in ("packed", "scale", "shape"))
    assert shape.tolist() == [40, 32] and packed.shape == (40, 4) and scale.shape == (40, 8)
    leaf = "segments.0.layers.1.mlp.gate.weight"  # layers with a window and without take turns
    weight = np.asarray(flatten(golden.weights())[leaf])[0]
    for row, column in ((0, 0), (3, 9), (39, 31)):
        number = (int(packed.view(np.uint32)[row, column // 8]) >> (4 * (column % 8)) & 15) - 8
        assert abs(number - weight[row, column] / scale[row, column // 4]) < 0.5 + 1e-4


def test_families_of_an_order_of_their_own_are_refused() -> None:
    golden = Golden(GOLDEN / "gpt_oss")
    with pytest.raises(UnsupportedError, match=r"scheme int8: family gpt_oss stores .*mlp\.experts\..* in an order"):
        check_writable(Quantizer(parse_scheme("int8")), golden.config)
