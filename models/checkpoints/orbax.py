"""Distaff's own checkpoints: the weights as the decoder has them, stored by Orbax.

    FOLDER/distaff.json    format version; shape and type of every leaf; CRC-32 of every file that holds numbers
    FOLDER/config.json     and generation_config.json, tokenizer files: as in a Hugging Face folder
    FOLDER/weights/        an Orbax PyTree of {dotted path: array}, one Zarr 3 array each

Orbax writes. Reading goes through TensorStore, on which Orbax stands, a chunk at a time into the final buffers: Orbax's
own restore holds about three times an array while it reads it.
"""

import logging
import zlib
from collections.abc import Callable
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.typing import DTypeLike

from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from ..errors import CheckpointError, CorruptCheckpointError, ExtraTensorError, MissingTensorError, ShapeMismatchError
from ..tokenizer import Tokenizer
from .assemble import aligned_empty
from .base import OnBytes, Place, first_device
from .hf_folder import copy_tokenizer_files
from .json_file import read_object, write_object

MANIFEST: Final = "distaff.json"
FORMAT_VERSION: Final = 1
CHUNK_BYTES: Final = 16 * 2**20
_DTYPES: Final = ("float32", "float16", "bfloat16")


class OrbaxFolder:
    """A folder that `write_orbax` made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / MANIFEST
        content = read_object(self.manifest)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.manifest}: format_version: found {str(version)[:40]}, expected {FORMAT_VERSION}; convert the "
                "original checkpoint again with this version of Distaff"
            )
        self.leaves = self._read_leaves(content.get("leaves"))
        checksums = content.get("crc32")
        if not isinstance(checksums, dict):
            raise CorruptCheckpointError(f"{self.manifest}: crc32: expected an object; convert the model again")
        self._checksums: dict[str, Any] = checksums
        self.hf_config = read_object(path / "config.json")

    def _read_leaves(self, found: object) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        if not isinstance(found, dict):
            raise CorruptCheckpointError(f"{self.manifest}: leaves: expected an object; convert the model again")
        leaves: dict[str, tuple[tuple[int, ...], jnp.dtype]] = {}
        for name, leaf in found.items():
            shape, dtype = (leaf.get("shape"), leaf.get("dtype")) if isinstance(leaf, dict) else (None, None)
            whole = isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape)
            if not isinstance(shape, list) or not whole or dtype not in _DTYPES or "/" in name:
                raise CorruptCheckpointError(
                    f"{self.manifest}: leaves: {name[:100]!r}: found {str(leaf)[:80]}, expected a shape and a dtype of "
                    f"{', '.join(_DTYPES)}; convert the model again"
                )
            leaves[name] = (tuple(shape), jnp.dtype(dtype))
        return leaves

    @property
    def generation_config(self) -> dict[str, Any]:
        file = self.path / "generation_config.json"
        return read_object(file) if file.is_file() else {}

    @property
    def stored_dtype(self) -> jnp.dtype:
        return max(
            (dtype for _, dtype in self.leaves.values()), key=lambda dtype: dtype.itemsize, default=jnp.dtype("f4")
        )

    def load_weights(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        place: Place | None = None,
        progress: OnBytes | None = None,
    ) -> Weights:
        specs = weight_specs(config, jnp.dtype(dtype))
        self._check(specs)
        place = place or first_device
        total = sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs.values())
        done = 0
        flat: dict[str, jax.Array] = {}
        for path, spec in specs.items():
            stored = self._open(path, spec)
            made = jax.make_array_from_callback(spec.shape, place(spec), self._reader(path, stored, spec))
            flat[path] = made.block_until_ready()
            done += made.nbytes
            if progress is not None:
                progress(done, total)
        return unflatten(flat)

    def _check(self, specs: dict[str, WeightSpec]) -> None:
        missing = [path for path in specs if path not in self.leaves]
        extra = [path for path in self.leaves if path not in specs]
        advice = "check that config.json belongs to these weights"
        if missing:
            raise MissingTensorError(
                f"{self.manifest}: found no leaf {missing[0]!r}, expected {len(specs)} leaves; {advice}"
            )
        if extra:
            raise ExtraTensorError(f"{self.manifest}: found leaf {extra[0]!r}, expected only {len(specs)}; {advice}")
        for path, spec in specs.items():
            if self.leaves[path][0] != spec.shape:
                raise ShapeMismatchError(
                    f"{self.manifest}: leaf {path!r}: found shape {list(self.leaves[path][0])}, expected "
                    f"{list(spec.shape)}; {advice}"
                )

    def _open(self, path: str, spec: WeightSpec) -> ts.TensorStore:
        folder = self.path / "weights" / path
        store = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "fill_missing_data_reads": False,
        }
        try:
            found = ts.open(store, open=True, read=True).result()
        except ValueError as error:
            raise _damaged(folder, error) from error
        shape, dtype = self.leaves[path]
        if tuple(found.shape) != shape or found.dtype.numpy_dtype != dtype:
            raise CorruptCheckpointError(
                f"{folder}: found {found.dtype.name} {list(found.shape)}, expected {dtype.name} {list(spec.shape)} by "
                f"{MANIFEST}; convert the model again"
            )
        return found

    def _reader(
        self, path: str, stored: ts.TensorStore, spec: WeightSpec
    ) -> Callable[[tuple[slice, ...] | None], np.ndarray]:
        widths = stored.chunk_layout.write_chunk.shape or ()
        chunk = [width or n for width, n in zip(widths, spec.shape, strict=True)]
        folder = self.path / "weights" / path

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            slices = index or (slice(None),) * len(spec.shape)
            bounds = [s.indices(n)[:2] for s, n in zip(slices, spec.shape, strict=True)]
            shard = aligned_empty(tuple(stop - start for start, stop in bounds), spec.dtype)
            for cut in product(*(_cuts(*pair, width) for pair, width in zip(bounds, chunk, strict=True))):
                where = tuple(slice(a - first, b - first) for (a, b), (first, _) in zip(cut, bounds, strict=True))
                try:
                    self._verify(folder, [a // width for (a, _), width in zip(cut, chunk, strict=True)])
                    # One at a time: each chunk in flight is held compressed, decoded and once more.
                    shard[where] = stored[tuple(slice(*pair) for pair in cut)].read().result()
                except (ValueError, OSError) as error:
                    raise _damaged(folder, error) from error
            return shard

        return read

    def _verify(self, folder: Path, index: list[int]) -> None:
        """Zarr finds a chunk that is cut short, but not one in which a bit has changed."""
        file = folder.joinpath("c", *map(str, index))
        if _crc32(file) != self._checksums.get(file.relative_to(self.path).as_posix()):
            raise CorruptCheckpointError(
                f"{file}: found another content than {MANIFEST} has the CRC-32 of; copy or convert the model again"
            )

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.path)

    def copy_tokenizer(self, folder: Path) -> None:
        copy_tokenizer_files(self.path, folder)


def _cuts(start: int, stop: int, width: int) -> list[tuple[int, int]]:
    """A range cut where chunks of `width` end."""
    edges = [start, *range(start // width * width + width, stop, width), stop]
    return list(pairwise(edges))


def _damaged(folder: Path, error: Exception) -> CorruptCheckpointError:
    reason = str(error).split("[source locations")[0].strip()
    return CorruptCheckpointError(
        f"{folder}: found no readable array ({reason[:200]}); copy or convert the model again"
    )


def _crc32(file: Path) -> int:
    return zlib.crc32(np.memmap(file, np.uint8, mode="r"))


def write_orbax(weights: Weights, folder: Path) -> None:
    """Write weights and manifest into an existing folder."""
    flat = flatten(weights)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True, save_concurrent_gb=1)
    arguments = {path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for path in flat}
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about the layout that is asked for here
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder.absolute() / "weights", args=ocp.args.PyTreeSave(flat, save_args=arguments))
    finally:
        logger.setLevel(level)
    leaves = {path: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for path, leaf in flat.items()}
    chunks = sorted(file for file in (folder / "weights").glob("*/c/**/*") if file.is_file())
    checksums = {file.relative_to(folder).as_posix(): _crc32(file) for file in chunks}
    write_object(folder / MANIFEST, {"format_version": FORMAT_VERSION, "leaves": leaves, "crc32": checksums})
