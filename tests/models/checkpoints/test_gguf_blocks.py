"""Blocks that stay as they are stored stand for what the gguf package makes of them, bit by bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import convert, stored_numbers
from distaff.models.checkpoints.gguf import GGUFCheckpoint
from distaff.models.checkpoints.gguf_blocks import BLOCK_TYPES
from distaff.models.decoder import flatten
from distaff.models.families import config_from_hf

BITS = {Kind.Q8_0: 8.5, Kind.Q4_0: 4.5, Kind.Q4_1: 5, Kind.Q4_K: 6, Kind.MXFP4: 4.25}
"""Of a number with its part of what its group shares; Q4_K's scales of six bits come as fp32."""


def random_blocks(kind: Kind, rng: np.random.Generator) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Any bytes, but for fp16 scales, which are finite, and exponents of a size that floats have."""
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]

    def make(shape: tuple[int, ...]) -> np.ndarray:
        *rows, width = shape
        made = rng.integers(0, 256, (int(np.prod(rows)) * width // block, nbytes), np.uint8)
        if kind == Kind.MXFP4:
            made[:, 0] = rng.integers(118, 124, len(made))
        else:
            count = 1 if kind in (Kind.Q8_0, Kind.Q4_0) else 2
            made[:, : 2 * count] = rng.uniform(-0.05, 0.05, (len(made), count)).astype(np.float16).view(np.uint8)
        return made.reshape(*rows, -1)

    return make


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_a_kept_block_is_what_the_package_reads(tiny_gguf: Callable[..., Path], kind: Kind) -> None:
    """All matrices of a llama, q and k with their rows in order, and both tables."""
    checkpoint = GGUFCheckpoint(tiny_gguf(kind=kind, raw=random_blocks(kind, np.random.default_rng(5))))
    config = config_from_hf(checkpoint.hf_config)
    expanded = flatten(checkpoint.load_weights(config, dtype=jnp.float32))
    stored = stored_numbers(checkpoint, config).roundings
    kept = flatten(checkpoint.load_weights(config, dtype=jnp.float32, keep=stored))
    held = {path: leaf for path, leaf in kept.items() if isinstance(leaf, Quantized)}
    assert len(held) == 9
    for path, leaf in held.items():
        assert leaf.shape == expanded[path].shape
        assert leaf.nbytes == expanded[path].size * BITS[kind] / 8
        np.testing.assert_array_equal(dequantized(leaf), expanded[path])
    found = stored_numbers(checkpoint, config)
    assert found.roundings.keys() == held.keys() and not found.expanded and not found.by_default


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_a_part_of_rows_is_cut_out_of_whole_blocks(tiny_gguf: Callable[..., Path], kind: Kind) -> None:
    checkpoint = GGUFCheckpoint(tiny_gguf(kind=kind, raw=random_blocks(kind, np.random.default_rng(6))))
    name = "model.layers.1.self_attn.q_proj.weight"
    form = checkpoint.tensors.form(name)
    assert form is not None and not isinstance(form, str)
    for part in BLOCK_TYPES[kind].parts:
        tensors = checkpoint.tensors.parts(form, part)
        whole = tensors.read_rows(name, 0, 256)
        assert whole.shape == tensors.infos[name].shape
        low, high = whole.shape[1] // 3, whole.shape[1] - 1
        np.testing.assert_array_equal(tensors.read_rows(name, 5, 40, ((low, high),)), whole[5:40, low:high])


def test_types_without_products_are_expanded_for_a_reason(
    tiny_gguf: Callable[..., Path], tiny_tensors: dict[str, np.ndarray]
) -> None:
    """As in files that mix types: a leaf of all the layers has one form or none."""
    path = tiny_gguf(
        kind=Kind.Q8_0,
        leave_out=("blk.1.ffn_up.weight", "output.weight"),
        edit=lambda writer: (
            writer.add_tensor(
                "blk.1.ffn_up.weight", gguf.quantize(tiny_tensors["model.layers.1.mlp.up_proj.weight"], Kind.Q4_0),
                raw_dtype=Kind.Q4_0,
            ),
            writer.add_tensor(
                "output.weight", gguf.quantize(tiny_tensors["lm_head.weight"], Kind.Q5_0), raw_dtype=Kind.Q5_0
            ),
        ),
    )  # fmt: skip
    checkpoint = GGUFCheckpoint(path)
    config = config_from_hf(checkpoint.hf_config)
    found = stored_numbers(checkpoint, config)
    assert found.expanded == {
        "segments.0.layers.0.mlp.up.weight": "its layers are stored in several ways",
        "unembedder.table": "no product takes Q5_0",
    }
    expanded = flatten(checkpoint.load_weights(config, dtype=jnp.float32))
    stored = stored_numbers(checkpoint, config).roundings
    kept = flatten(checkpoint.load_weights(config, dtype=jnp.float32, keep=stored))
    for name, leaf in kept.items():
        assert isinstance(leaf, Quantized) == (name in found.roundings)
        np.testing.assert_array_equal(dequantized(leaf) if isinstance(leaf, Quantized) else leaf, expanded[name])


@pytest.mark.parametrize("case", ["gpt_oss", "qwen3_moe", "mixtral"])
def test_experts_stay_too(golden: Path, tmp_path: Path, case: str) -> None:
    """One tensor for all experts, in the order of Hugging Face or with gate and up apart."""
    shutil.copytree(golden / case, tmp_path / case)
    told = json.loads((tmp_path / case / "config.json").read_text())
    told |= {"swiglu_limit": 7.0} if case == "gpt_oss" else {}  # what GGUF takes for granted
    (tmp_path / case / "config.json").write_text(json.dumps(told))
    convert(str(tmp_path / case), tmp_path / "made.gguf", to="gguf", dtype="q8_0")
    checkpoint = GGUFCheckpoint(tmp_path / "made.gguf")
    config = config_from_hf(checkpoint.hf_config)
    expanded = flatten(checkpoint.load_weights(config, dtype=jnp.float32))
    stored = stored_numbers(checkpoint, config).roundings
    kept = flatten(checkpoint.load_weights(config, dtype=jnp.float32, keep=stored))
    held = {path: leaf for path, leaf in kept.items() if isinstance(leaf, Quantized)}
    assert {"gate", "up"} <= {path.rpartition(".")[2] for path in held}
    for path, leaf in held.items():
        np.testing.assert_array_equal(dequantized(leaf), expanded[path])
