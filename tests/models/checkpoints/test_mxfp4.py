import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import stored_numbers
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.checkpoints.mxfp4 import Mxfp4Tensors, dequantize
from distaff.models.decoder import flatten
from distaff.models.errors import MissingTensorError, ShapeMismatchError
from distaff.models.families import config_from_hf

from .mxfp4_folder import write_mxfp4

E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_every_value_of_every_byte() -> None:
    """Against the table of the OCP specification, one value at a time."""
    blocks = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scales = np.array([126, 127, 128, 130] * 4, np.uint8)
    found = dequantize(blocks, scales.reshape(16, 1)[:, 0].reshape(16))
    for i, (byte, place) in enumerate((byte, half) for byte in range(256) for half in (0, 1)):
        nibble = byte >> 4 if place else byte & 15
        value = E2M1[nibble & 7] * (-1 if nibble & 8 else 1) * 2.0 ** (int(scales[byte // 16]) - 127)
        assert found.reshape(-1)[i] == value


def test_agrees_with_gguf() -> None:
    """GGUF stores the same format in another order: a byte holds values i and i + 16."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (5, 4, 16), np.uint8)
    scales = rng.integers(100, 140, (5, 4), np.uint8)
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(5, 4, 32)
    packed = (nibbles[..., :16] | nibbles[..., 16:] << 4).astype(np.uint8)
    stored = np.concatenate([scales[..., None], packed], axis=-1).reshape(5, -1)
    expected = gguf.dequantize(stored, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(dequantize(blocks, scales), expected)


@pytest.fixture
def quantised(golden: Path, tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        shutil.rmtree(tmp_path / "gpt_oss", ignore_errors=True)
        return write_mxfp4(golden / "gpt_oss", tmp_path / "gpt_oss")

    return make


def test_loads_blocks_and_scales_as_one_tensor(quantised: Callable[[], Path]) -> None:
    checkpoint = HFFolder(quantised())
    flat = flatten(checkpoint.load_weights(config_from_hf(checkpoint.hf_config), dtype="float32"))
    assert checkpoint.stored_dtype.name == "bfloat16"
    stored = load_file(f"{checkpoint.path}/model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    both = dequantize(stored[f"{name}_blocks"], stored[f"{name}_scales"])  # [E, 2F, D], gate and up in turn
    (path,) = [path for path in flat if path.endswith("1.mlp.experts.gate")]
    np.testing.assert_array_equal(flat[path][0], both[:, ::2])
    np.testing.assert_array_equal(flat[path.replace("gate", "up")][0], both[:, 1::2])
    name = "model.layers.1.mlp.experts.down_proj"
    down = dequantize(stored[f"{name}_blocks"], stored[f"{name}_scales"])  # [E, D, F]
    np.testing.assert_array_equal(flat[path.replace("gate", "down")][0], down)


def test_experts_stay_as_they_are_stored(quantised: Callable[[], Path]) -> None:
    """Half a byte for a number and one for the scale of 32, and what they stand for is what is read expanded."""
    checkpoint = HFFolder(quantised())
    config = config_from_hf(checkpoint.hf_config)
    expanded = flatten(checkpoint.load_weights(config, dtype="float32"))
    kept = flatten(checkpoint.load_weights(config, dtype="float32", keep=stored_numbers(checkpoint, config).roundings))
    experts = {path: leaf for path, leaf in kept.items() if isinstance(leaf, Quantized)}
    assert {path.rpartition(".")[2] for path in experts} == {"gate", "up", "down"}
    for path, leaf in experts.items():
        assert leaf.shape == expanded[path].shape
        assert leaf.nbytes == expanded[path].size * 17 / 32
        np.testing.assert_array_equal(dequantized(leaf), expanded[path])
    found = stored_numbers(checkpoint, config)
    assert found.by_default and found.roundings.keys() == experts.keys() and not found.expanded


def test_part_of_a_row_is_read_as_it_is_stored(quantised: Callable[[], Path]) -> None:
    """As a layout asks that splits what is summed over, in whole groups and in others."""
    checkpoint = HFFolder(quantised())
    stored = load_file(f"{checkpoint.path}/model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    tensors = checkpoint.tensors
    assert isinstance(tensors, Mxfp4Tensors)
    form = tensors.form(name)
    assert form is not None
    values = stored[f"{name}_blocks"].reshape(5, 32, 32).swapaxes(1, 2)  # [E, C/2, R]
    parts = tensors.parts(form, "values")
    np.testing.assert_array_equal(parts.read_rows(name, 0, 5), values)
    np.testing.assert_array_equal(parts.read_rows(name, 1, 3, ((7, 19), (2, 30))), values[1:3, 7:19, 2:30])
    scales = tensors.parts(form, "scale")
    np.testing.assert_array_equal(
        scales.read_rows(name, 1, 3, ((1, 2), (2, 30))), stored[f"{name}_scales"].swapaxes(1, 2)[1:3, 1:, 2:30]
    )
    assert sum(runs.nbytes for runs in parts.planned(name, 0, 5)) == values.size


@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_one_without_the_other(quantised: Callable[[], Path], part: str) -> None:
    folder = quantised()
    stored = load_file(folder / "model.safetensors")
    del stored[f"model.layers.0.mlp.experts.down_proj_{part}"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(MissingTensorError, match=rf"down_proj_\w+' without its _{part}"):
        _ = HFFolder(folder).tensors


def test_blocks_and_scales_of_different_shapes(quantised: Callable[[], Path]) -> None:
    folder = quantised()
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj_scales"
    stored[name] = stored[name][:, :-1]
    save_file({key: np.ascontiguousarray(value) for key, value in stored.items()}, folder / "model.safetensors")
    with pytest.raises(
        ShapeMismatchError, match=r"down_proj_blocks': found U8 \[.*\] with scales U8 \[.*\], expected U8 \[E, R"
    ):
        _ = HFFolder(folder).tensors
