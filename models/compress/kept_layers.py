"""Layers that are done, in files, so that a run that was stopped goes on behind them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...backends.base import PyTree
from ...backends.errors import UsageError
from ...backends.quantized import Quantized, is_quantized
from ..checkpoints.json_file import read_object, write_object

type Leaves = dict[str, PyTree]
"""Of one layer, by their keys; some are Quantized."""

_TOLD = "run.json"


class KeptLayers:
    """A folder with a file for each layer.

    Args:
        folder: made if it does not exist.
        run: what the layers depend on.

    Raises:
        UsageError: the folder is of another run.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        told, wanted = folder / _TOLD, json.loads(json.dumps(run))
        if not told.exists():
            write_object(told, wanted)
        elif (found := read_object(told)) != wanted:
            other = ", ".join(sorted(key for key in wanted if found.get(key) != wanted[key])) or "more"
            raise UsageError(
                f"{folder}: layers of a run with another {other} are there, expected one that goes on; run it as it "
                "was, or remove that folder"
            )

    def load(self, number: int) -> Leaves | None:
        """A layer; None if it is not done."""
        path = self._path(number)
        if not path.exists():
            return None
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        found: Leaves = {}
        for key, told in json.loads(arrays.pop("told").tobytes()).items():
            leaf = {part: _typed(arrays[f"{key}/{part}"], *shape) for part, shape in told["parts"].items()}
            if "kind" not in told:
                found[key] = leaf["leaf"]
                continue
            values, scale = jnp.asarray(leaf["values"]), jnp.asarray(leaf["scale"])
            found[key] = Quantized(values, scale, told["kind"], jnp.dtype(told["dtype"]), told["activations"])
        return found

    def save(self, number: int, leaves: Leaves) -> None:
        """Writes a layer, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        told: dict[str, Any] = {}
        for key, leaf in leaves.items():
            parts = {"values": leaf.values, "scale": leaf.scale} if is_quantized(leaf) else {"leaf": leaf}
            told[key] = {"parts": {part: (jnp.dtype(x.dtype).name, x.shape) for part, x in parts.items()}}
            if is_quantized(leaf):
                told[key] |= {"kind": leaf.kind, "dtype": leaf.dtype.name, "activations": leaf.activations}
            # NumPy's files know no bfloat16.
            arrays |= {f"{key}/{part}": _bytes(np.asarray(x)) for part, x in parts.items()}
        arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
        made = self._path(number).with_suffix(".part.npz")
        np.savez(made, **arrays)  # pyright: ignore[reportArgumentType]
        made.replace(self._path(number))

    def _path(self, number: int) -> Path:
        return self.folder / f"layer-{number:04}.npz"


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)


def _typed(x: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    return x.view(jnp.dtype(dtype)).reshape(shape)
