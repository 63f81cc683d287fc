"""bitsandbytes checkpoints: int8 rows and tables of 4-bit numbers, written out by their formulas."""

import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.quantized import TABLES, Quantized, dequantized
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.checkpoints.kept import Form
from distaff.models.checkpoints.stored_linears import LinearTensors
from distaff.models.errors import CorruptCheckpointError, ShapeMismatchError

TOLD = {"quantization_config": {"quant_method": "bitsandbytes"}}
NAME = "model.layers.0.mlp.down_proj.weight"


def test_int8_is_scaled_by_the_largest_of_its_row(tiny_folder: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(-127, 128, (256, 512)).astype(np.int8)
    largest = rng.uniform(0.1, 2, 256).astype(np.float32)
    change = {NAME: numbers, NAME.replace("weight", "SCB"): largest, NAME + "_format": np.zeros((), np.uint8)}
    tensors = HFFolder(tiny_folder(change=change, config=TOLD)).tensors
    want = numbers * largest[:, None] / 127
    np.testing.assert_allclose(tensors.read_rows(NAME, 0, 256), want, rtol=1e-6)
    np.testing.assert_allclose(tensors.read_rows(NAME, 3, 9, ((1, 6),)), want[3:9, 1:6], rtol=1e-6)
    assert tensors.infos[NAME].dtype == "bitsandbytes int8" and NAME + "_format" not in tensors.infos


def four_bits(nested: bool, **told: object) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored tensors of a [256, 512] matrix in blocks of 64, and what they mean, one number at a time."""
    rng = np.random.default_rng(1)
    numbers, table = rng.integers(0, 16, 256 * 512), rng.normal(size=16).astype(np.float32)
    packed = (numbers[::2] * 16 + numbers[1::2]).astype(np.uint8)[:, None]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [256, 512]}
    stored = {NAME: packed, f"{NAME}.quant_map": table}
    if nested:
        levels, scales = rng.uniform(-1, 1, 256).astype(np.float32), rng.uniform(1, 2, 8).astype(np.float32)
        which = rng.integers(0, 256, 2048).astype(np.uint8)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
        stored |= {f"{NAME}.absmax": which, f"{NAME}.nested_absmax": scales, f"{NAME}.nested_quant_map": levels}
        absmax = levels[which] * np.repeat(scales, 256) + np.float32(0.25)
    else:
        absmax = rng.uniform(0.5, 2, 2048).astype(np.float32)
        stored[f"{NAME}.absmax"] = absmax
    told_bytes = json.dumps(state | told).encode()
    stored[f"{NAME}.quant_state.bitsandbytes__nf4"] = np.frombuffer(told_bytes, np.uint8)
    return stored, (table[numbers] * np.repeat(absmax, 64)).reshape(256, 512)


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_go_through_a_table(tiny_folder: Callable[..., Path], nested: bool) -> None:
    stored, want = four_bits(nested)
    tensors = HFFolder(tiny_folder(change=stored, config=TOLD)).tensors
    np.testing.assert_allclose(tensors.read_rows(NAME, 0, 256), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        tensors.read_rows(NAME, 33, 40, ((100, 203),)), want[33:40, 100:203], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_by_the_known_tables_can_stay(tiny_folder: Callable[..., Path], kind: str, nested: bool) -> None:
    """Half a byte each, and what they stand for is what is read expanded, to the last bit; of a part of them too."""
    stored, _ = four_bits(nested, quant_type=kind)
    stored[f"{NAME}.quant_map"] = np.asarray(TABLES[kind], np.float32)
    tensors = HFFolder(tiny_folder(change=stored, config=TOLD)).tensors
    assert isinstance(tensors, LinearTensors)
    form = tensors.form(NAME)
    assert isinstance(form, Form) and form == Form(kind, 8)
    values, scale = (tensors.parts(form, part) for part in ("values", "scale"))
    assert (values.infos[NAME].shape, scale.infos[NAME].shape) == ((256, 256), (256, 8))
    for rows, groups in (((0, 256), (0, 8)), ((33, 40), (3, 5))):
        held = Quantized(
            jnp.asarray(values.read_rows(NAME, *rows, ((32 * groups[0], 32 * groups[1]),))),
            jnp.asarray(scale.read_rows(NAME, *rows, (groups,))),
            kind,
            jnp.dtype("float32"),
        )
        expanded = tensors.read_rows(NAME, *rows, ((64 * groups[0], 64 * groups[1]),))
        np.testing.assert_array_equal(dequantized(held), expanded)


@pytest.mark.parametrize(
    ("told", "own", "why"),
    [
        ({}, True, "numbers of nf4 by a table of the checkpoint's own"),
        ({"quant_type": "nf5"}, False, "numbers of nf5 by a table of the checkpoint's own"),
        ({"blocksize": 1024}, False, "blocks of 1024 in rows of 512"),
    ],
)
def test_four_bits_that_no_product_takes(
    tiny_folder: Callable[..., Path], told: dict[str, object], own: bool, why: str
) -> None:
    stored, _ = four_bits(False, **told)
    if not own:
        stored[f"{NAME}.quant_map"] = np.asarray(TABLES["nf4"], np.float32)
    if "blocksize" in told:
        stored[f"{NAME}.absmax"] = np.ones(128, np.float32)
    tensors = HFFolder(tiny_folder(change=stored, config=TOLD)).tensors
    assert isinstance(tensors, LinearTensors) and tensors.form(NAME) == why


def test_what_is_damaged_is_named(tiny_folder: Callable[..., Path]) -> None:
    stored, _ = four_bits(nested=False, shape=[256, 256])
    with pytest.raises(ShapeMismatchError, match=rf"tensor '{NAME}': found shape \[65536, 1\], expected \[32768, 1\]"):
        _ = HFFolder(tiny_folder("a", change=stored, config=TOLD)).tensors
    stored, _ = four_bits(nested=False)
    stored[f"{NAME}.quant_state.bitsandbytes__nf4"] = np.frombuffer(b"{}", np.uint8)
    with pytest.raises(CorruptCheckpointError, match="found no description of a quantised weight"):
        _ = HFFolder(tiny_folder("b", change=stored, config=TOLD)).tensors
