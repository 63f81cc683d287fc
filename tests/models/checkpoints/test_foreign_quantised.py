"""Matrices as other libraries stored them (tests/golden/quantised) mean what these libraries make of them again."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distaff.models.checkpoints.hf_folder import HFFolder

STORED = sorted((Path(__file__).parents[2] / "golden" / "quantised").glob("*.safetensors"))
TYPES: dict[str, Any] = {
    "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8", "F8_E4M3": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
NAME = "model.layers.0.self_attn.q_proj"


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The quantization_config and the tensors; numpy's reader of the library knows no fp8."""
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    config = json.loads(header.pop("__metadata__")["quantization_config"])
    tensors = {}
    for name, told in header.items():
        first, last = told["data_offsets"]
        tensors[name] = np.frombuffer(content[start + first : start + last], TYPES[told["dtype"]]).reshape(
            told["shape"]
        )
    return config, tensors


@pytest.mark.parametrize("file", STORED, ids=lambda path: path.stem)
def test_it_is_what_its_library_reads(file: Path, tiny_folder: Callable[..., Path]) -> None:
    config, tensors = read(file)
    meant = tensors.pop("meant")
    change: dict[str, Any] = {f"{NAME}.weight": None}
    change |= {name.replace("stored.", f"{NAME}."): values for name, values in tensors.items()}
    # The rest of the model stays in floating point.
    folder = HFFolder(tiny_folder(change=change, config={"quantization_config": config}))
    found = folder.tensors.read_rows(f"{NAME}.weight", 0, len(meant))
    np.testing.assert_allclose(found, meant, rtol=1e-5, atol=1e-6)
    part = folder.tensors.read_rows(f"{NAME}.weight", 3, 11, ((5, 38),))
    np.testing.assert_allclose(part, meant[3:11, 5:38], rtol=1e-5, atol=1e-6)


def test_there_are_files_of_every_library() -> None:
    assert {file.stem.split("-")[0] for file in STORED} == {"compressed", "bitsandbytes", "gptq", "awq"}
