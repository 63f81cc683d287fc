"""GPTQ and AWQ checkpoints, packed by the loops that the formats are defined by, in whole and in part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.quantized import Quantized, dequantized
from distaff.models.checkpoints import stored_numbers
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.decoder import flatten
from distaff.models.errors import MissingTensorError, ShapeMismatchError, UnsupportedQuantizationError
from distaff.models.families import config_from_hf

type Tensors = dict[str, np.ndarray]
GROUP = 32


def rounded(weight: np.ndarray, bits: int, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers [N, K], zero points and fp16 scales [groups, N] for groups of inputs."""
    groups = which.max() + 1
    low, high = (
        np.stack([op(weight[:, which == g], axis=1) for g in range(groups)]) for op in (np.min, np.max)
    )  # fmt: skip
    scale = ((high - low) / (2**bits - 1)).astype(np.float16)
    zeros = np.clip(np.rint(-low / scale), 1, 2**bits - 1).astype(np.int64)
    numbers = np.rint(weight / scale[which].T.astype(np.float32)) + zeros[which].T
    return np.clip(numbers, 0, 2**bits - 1).astype(np.int64), zeros, scale


def gptq_packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """[N, K] -> [K * bits / 32, N], as AutoGPTQ's loop has it."""
    per_word, turned = 32 // bits, numbers.T.astype(np.uint32)
    words = np.zeros((turned.shape[0] // per_word, turned.shape[1]), np.uint32)
    for row in range(turned.shape[0]):
        words[row // per_word] |= turned[row] << np.uint32(bits * (row % per_word))
    return words.view(np.int32)


def along_columns(numbers: np.ndarray, bits: int, order: list[int]) -> np.ndarray:
    """[R, N] -> [R, N * bits / 32], column `order[i]` of each word's at place i."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // per_word), np.uint32)
    for word in range(words.shape[1]):
        for place in range(per_word):
            words[:, word] |= numbers[:, word * per_word + order[place]].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def stored(weight: np.ndarray, method: str, bits: int, rng: np.random.Generator, places: bool) -> tuple[Tensors, Any]:
    """The tensors of one matrix, and what they mean."""
    which = np.arange(weight.shape[1]) // GROUP
    which = rng.permutation(which) if places else which
    numbers, zeros, scale = rounded(weight, bits, which)
    meant = (numbers - zeros[which].T).astype(np.float32) * scale[which].T.astype(np.float32)
    if method == "awq":
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        packed = along_columns(numbers.T, 4, order), along_columns(zeros, 4, order)
        return {"qweight": packed[0], "qzeros": packed[1], "scales": scale}, meant
    above = 0 if method == "gptq_v2" else 1
    order = list(range(32 // bits))
    made = {"qweight": gptq_packed(numbers, bits), "qzeros": along_columns(zeros - above, bits, order), "scales": scale}
    return (made | {"g_idx": which.astype(np.int32)} if places else made), meant


@pytest.mark.parametrize(
    ("method", "bits", "places"),
    [("gptq", 4, False), ("gptq", 8, True), ("gptq_v2", 4, True), ("gptq", 2, False), ("awq", 4, False)],
)
def test_weights_are_what_the_numbers_mean(
    tiny_folder: Callable[..., Path], tiny_tensors: Tensors, method: str, bits: int, places: bool
) -> None:
    rng = np.random.default_rng(1)
    change: dict[str, Any] = {}
    meant: Tensors = {}
    for name, weight in tiny_tensors.items():
        if name.endswith("_proj.weight"):
            parts, meant[name] = stored(weight, method, bits, rng, places)
            base = name.removesuffix(".weight")
            change |= {name: None, **{f"{base}.{part}": values for part, values in parts.items()}}
            change[f"{base}.bias"] = np.zeros(weight.shape[0], np.float16)  # as some writers do
    told = {"bits": bits, "group_size": GROUP, "quant_method": "awq" if method == "awq" else "gptq"}
    told |= {"checkpoint_format": "gptq_v2"} if method == "gptq_v2" else {}
    folder = HFFolder(tiny_folder(change=change, config={"quantization_config": told}))
    for name, expected in meant.items():
        np.testing.assert_allclose(folder.tensors.read_rows(name, 0, len(expected)), expected, rtol=1e-6)
        part = folder.tensors.read_rows(name, 5, 14, ((37, 101),))
        np.testing.assert_allclose(part, expected[5:14, 37:101], rtol=1e-6)
    config = config_from_hf(folder.hf_config)
    weights = flatten(folder.load_weights(config, dtype=jnp.float32))
    q = meant["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(weights["segments.0.layers.0.attention.q.weight"][1].reshape(q.shape), q, rtol=1e-6)
    kept = flatten(folder.load_weights(config, dtype=jnp.float32, keep=stored_numbers(folder, config).roundings))
    held = {path: leaf for path, leaf in kept.items() if isinstance(leaf, Quantized)}
    assert len(held) == (0 if places or bits == 2 else 7)
    for path, leaf in held.items():
        assert leaf.nbytes == leaf.scale.size * (GROUP * bits / 8 + 2 + 4)  # numbers, fp16 scale and minimum in fp32
        # Exact: numbers and zero points times fp16 scales have fewer bits than fp32.
        np.testing.assert_array_equal(dequantized(leaf), weights[path])
    reasons = stored_numbers(folder, config).expanded
    assert set(reasons.values()) == (
        {"groups of columns in an order of their own (desc_act)"} if places
        else {"numbers of 2 bits in rows of 256", "numbers of 2 bits in rows of 512"} if bits == 2 else set()
    )  # fmt: skip


def test_groups_that_are_named_in_order_stay(tiny_folder: Callable[..., Path], tiny_tensors: Tensors) -> None:
    """Writers name the group of each column though it is that of its place."""
    change: dict[str, Any] = {}
    for name, weight in tiny_tensors.items():
        if name.endswith("_proj.weight"):
            parts, _ = stored(weight, "gptq", 4, np.random.default_rng(0), places=False)
            parts["g_idx"] = np.arange(weight.shape[1], dtype=np.int32) // GROUP
            change |= {name: None, **{f"{name.removesuffix('.weight')}.{part}": each for part, each in parts.items()}}
    told = {"bits": 4, "group_size": GROUP, "quant_method": "gptq"}
    folder = HFFolder(tiny_folder(change=change, config={"quantization_config": told}))
    config = config_from_hf(folder.hf_config)
    kept = flatten(folder.load_weights(config, dtype=jnp.float32, keep=stored_numbers(folder, config).roundings))
    expanded = flatten(folder.load_weights(config, dtype=jnp.float32))
    held = {path: leaf for path, leaf in kept.items() if isinstance(leaf, Quantized)}
    assert len(held) == 7
    for path, leaf in held.items():
        np.testing.assert_array_equal(dequantized(leaf), expanded[path])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"bits": 3}, "quantization_config.bits: found 3, expected 2, 4 or 8"),
        ({"quant_method": "awq", "bits": 8}, "quantization_config.bits: found 8, expected 4"),
        ({"group_size": 0}, "quantization_config.group_size: found 0"),
        ({"quant_method": "awq", "version": "gemv"}, "quantization_config.version: found 'gemv', expected 'gemm'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    tiny_folder: Callable[..., Path], told: dict[str, Any], message: str
) -> None:
    given = {"quant_method": "gptq", "bits": 4, "group_size": GROUP} | told
    with pytest.raises(UnsupportedQuantizationError, match=message):
        _ = HFFolder(tiny_folder(config={"quantization_config": given})).tensors


def test_parts_that_do_not_fit_are_refused(tiny_folder: Callable[..., Path], tiny_tensors: Tensors) -> None:
    base = "model.layers.0.mlp.up_proj"
    parts, _ = stored(tiny_tensors[f"{base}.weight"], "gptq", 4, np.random.default_rng(0), places=False)
    there = {f"{base}.{part}": values for part, values in parts.items()}
    told = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP}}
    wrong = there | {f"{base}.scales": parts["scales"][:-1]}
    with pytest.raises(ShapeMismatchError, match=rf"'{base}.scales': found shape \[7, 512\], expected \[8, 512\]"):
        _ = HFFolder(tiny_folder("a", change={f"{base}.weight": None, **wrong}, config=told)).tensors
    del there[f"{base}.qzeros"]
    with pytest.raises(MissingTensorError, match=rf"found no '{base}.qzeros'"):
        _ = HFFolder(tiny_folder("b", change={f"{base}.weight": None, **there}, config=told)).tensors
