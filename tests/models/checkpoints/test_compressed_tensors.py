"""compressed-tensors checkpoints by their formulas, expanded and kept as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import stored_numbers
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.decoder import flatten
from distaff.models.errors import MissingTensorError, ShapeMismatchError, UnsupportedQuantizationError
from distaff.models.families import config_from_hf

type Tensors = dict[str, np.ndarray]


def told(form: str, bits: int, *, tokens: bool = False) -> dict[str, Any]:
    inputs = {"dynamic": True, "strategy": "token"} if tokens else None
    group = {"targets": ["Linear"], "weights": {"num_bits": bits}, "input_activations": inputs}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {"quantization_config": config}


def words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers without sign, the first in the lowest bits of a word."""
    made = np.zeros((numbers.shape[0], -(-numbers.shape[1] * bits // 32)), np.uint32)
    for column in range(numbers.shape[1]):
        word, place = divmod(column * bits, 32)
        made[:, word] |= numbers[:, column].astype(np.uint32) << np.uint32(place)
    return made.view(np.int32)


def stored(weight: np.ndarray, form: str, bits: int, group: int, *, zeros: bool = False) -> tuple[Tensors, np.ndarray]:
    rng = np.random.default_rng(len(weight))
    rows, columns = weight.shape
    scale = rng.uniform(0.5, 2, (rows, columns // group)).astype(np.float32)
    spread = np.repeat(scale, group, axis=1)
    if form == "float-quantized":
        numbers = rng.uniform(-400, 400, weight.shape).astype(ml_dtypes.float8_e4m3fn)
        return {"weight": numbers, "weight_scale": scale}, numbers.astype(np.float32) * spread
    half = 2 ** (bits - 1)
    numbers = rng.integers(-half, half, weight.shape)
    points = rng.integers(-half, half, scale.shape) if zeros else np.zeros(scale.shape, int)
    meant = (numbers - np.repeat(points, group, axis=1)).astype(np.float32) * spread
    if form == "int-quantized":
        return {"weight": numbers.astype(np.int8), "weight_scale": scale}, meant
    shape = np.asarray(weight.shape, np.int64)
    made = {"weight_packed": words(numbers + half, bits), "weight_scale": scale, "weight_shape": shape}
    if zeros:
        made["weight_zero_point"] = words((points + half).T, bits).T.copy()
    return made, meant


def quantised(tensors: Tensors, form: str, bits: int, group: int, **options: Any) -> tuple[dict[str, Any], Tensors]:
    change: dict[str, Any] = {}
    meant: Tensors = {}
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            parts, meant[name] = stored(weight, form, bits, group or weight.shape[1], **options)
            change |= {name: None} | {name.removesuffix("weight") + part: values for part, values in parts.items()}
    return change, meant


@pytest.mark.parametrize(
    ("form", "bits", "group", "zeros"),
    [
        ("int-quantized", 8, 0, False),
        ("float-quantized", 8, 0, False),
        ("pack-quantized", 4, 64, False),
        ("pack-quantized", 4, 128, True),
        ("pack-quantized", 8, 0, False),
    ],
)
def test_expanded_and_kept(
    tiny_folder: Callable[..., Path], tiny_tensors: Tensors, form: str, bits: int, group: int, zeros: bool
) -> None:
    change, meant = quantised(tiny_tensors, form, bits, group, zeros=zeros)
    folder = HFFolder(tiny_folder(change=change, config=told(form, bits, tokens=form != "pack-quantized")))
    config = config_from_hf(folder.hf_config)
    for name, expected in meant.items():
        np.testing.assert_allclose(folder.tensors.read_rows(name, 0, len(expected)), expected, rtol=1e-6)
        part = folder.tensors.read_rows(name, 5, 14, ((37, 101),))
        np.testing.assert_allclose(part, expected[5:14, 37:101], rtol=1e-6)
    expanded = flatten(folder.load_weights(config, dtype=jnp.float32))
    kept = flatten(folder.load_weights(config, dtype=jnp.float32, keep=stored_numbers(folder, config).roundings))
    as_they_are = {path for path, leaf in kept.items() if isinstance(leaf, Quantized)}
    assert len(as_they_are) == 7
    for path, leaf in kept.items():
        values = dequantized(leaf) if isinstance(leaf, Quantized) else leaf
        np.testing.assert_allclose(values, expanded[path], rtol=1e-6)
    leaf = kept["segments.0.layers.0.attention.o.weight"]
    assert leaf.kind == ("float8_e4m3fn" if "float" in form else f"int{bits}")
    assert leaf.activations == (form != "pack-quantized")
    assert (leaf.minimum is not None) == zeros


def test_one_zero_point_for_a_whole_matrix_is_taken_off(
    tiny_folder: Callable[..., Path], tiny_tensors: Tensors
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    numbers = np.random.default_rng(0).integers(-128, 128, tiny_tensors[name].shape).astype(np.int8)
    change = {
        name: numbers,
        f"{name}_scale": np.asarray([0.5], np.float32),
        f"{name}_zero_point": np.asarray([-7], np.int8),
    }
    tensors = HFFolder(tiny_folder(change=change, config=told("int-quantized", 8))).tensors
    np.testing.assert_array_equal(tensors.read_rows(name, 3, 9), 0.5 * (numbers[3:9].astype(np.float32) + 7))


def test_parts_that_are_missing_or_do_not_fit_are_named(
    tiny_folder: Callable[..., Path], tiny_tensors: Tensors
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    parts, _ = stored(tiny_tensors[name], "pack-quantized", 4, 64, zeros=True)
    there = {name: None, **{name.replace("weight", part): values for part, values in parts.items()}}
    config = told("pack-quantized", 4)
    with pytest.raises(MissingTensorError, match="found no '.*weight_shape'"):
        _ = HFFolder(tiny_folder("a", change={**there, f"{name}_shape": None}, config=config)).tensors
    short = parts["weight_zero_point"][:, :-1].copy()
    with pytest.raises(ShapeMismatchError, match="weight_zero_point': found shape"):
        _ = HFFolder(tiny_folder("b", change={**there, f"{name}_zero_point": short}, config=config)).tensors
    places = np.zeros(3, np.int32)
    with pytest.raises(ShapeMismatchError, match=r"weight_g_idx': found shape \[3\]"):
        _ = HFFolder(tiny_folder("c", change={**there, f"{name}_g_idx": places}, config=config)).tensors


def test_formats_that_are_not_read_are_refused_by_name(tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedQuantizationError, match="quantization_config.format: found 'marlin-24', expected"):
        _ = HFFolder(tiny_folder("a", config=told("marlin-24", 4))).tensors
    with pytest.raises(UnsupportedQuantizationError, match=r"weights of \['3'\] bits, expected 4 or 8"):
        _ = HFFolder(tiny_folder("b", config=told("pack-quantized", 3))).tensors
