"""Distaff's own checkpoints: the weights as the decoder has them, stored by Orbax.

    FOLDER/distaff.json    format version; shape and type of every leaf; CRC-32 of every file that holds numbers; the
                           layout whose parts the chunks end with, if one was asked for
    FOLDER/config.json     and generation_config.json, tokenizer files: as in a Hugging Face folder
    FOLDER/weights/        an Orbax PyTree of {dotted path: array}, one Zarr 3 array each

Orbax writes. Chunks are fetched here, each once by each process that needs any of it, checked, and decoded by
TensorStore, on which Orbax stands: Orbax's own restore holds about three times an array while it reads it.
"""

import logging
import zlib
from collections.abc import Collection
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.typing import DTypeLike

from ...backends.base import PyTree
from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from ..errors import CheckpointError, CorruptCheckpointError, ExtraTensorError, MissingTensorError, ShapeMismatchError
from ..tokenizer import Tokenizer
from .base import Made, OnBytes, Place, first_device, loading_order
from .byte_files import Location, ReadCount, open_bytes
from .hf_folder import TOKENIZER_FILES, copy_tokenizer_files
from .json_file import read_object, write_object
from .remote import local_copy
from .runs import Box, Runs, overlap, volume
from .shards import ReadBoxes, aligned_empty, place_leaf, relative

MANIFEST: Final = "distaff.json"
FORMAT_VERSION: Final = 1
CHUNK_BYTES: Final = 16 * 2**20
_DTYPES: Final = ("float32", "float16", "bfloat16")


class OrbaxFolder:
    """A folder that `write_orbax` made."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.reads = ReadCount()
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
        made: Made | None = None,
        keep: Collection[str] = (),
        progress: OnBytes | None = None,
    ) -> Weights:
        specs = weight_specs(config, jnp.dtype(dtype))
        self._check(specs)
        place = place or first_device
        total = sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs.values())
        done = 0
        flat: dict[str, PyTree] = dict.fromkeys(specs)
        for spec in loading_order(specs.values()):
            # Together, or a chunk that several shards share would be fetched for each of them.
            placed = place_leaf(spec, place(spec), self.reader(spec), together=True)
            flat[spec.path] = placed if made is None else made(spec, placed)
            done += prod(spec.shape) * spec.dtype.itemsize
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

    def _open(self, path: str, spec: WeightSpec) -> "_StoredLeaf":
        folder = self.path / f"weights/{path}"
        description = folder / "zarr.json"
        try:
            found = _StoredLeaf(description.read_bytes() if description.is_file() else None)
        except ValueError as error:
            raise _damaged(folder, error) from error
        shape, dtype = self.leaves[path]
        if found.shape != shape or found.dtype != dtype:
            raise CorruptCheckpointError(
                f"{folder}: found {found.dtype.name} {list(found.shape)}, expected {dtype.name} {list(spec.shape)} by "
                f"{MANIFEST}; convert the model again"
            )
        return found

    def reader(self, spec: WeightSpec) -> ReadBoxes:
        """What reads boxes of a leaf: every chunk that holds any of them, once.

        Raises:
            CorruptCheckpointError: by the reader too; the array is damaged or another than the manifest says.
        """
        stored = self._open(spec.path, spec)
        folder = f"weights/{spec.path}"

        def read(boxes: list[Box]) -> list[np.ndarray]:
            made = [aligned_empty(tuple(stop - start for start, stop in box), spec.dtype) for box in boxes]
            for index in stored.chunks_of(boxes):
                key = "/".join(("c", *map(str, index)))
                try:
                    values = stored.decode(key, index, self._chunk(f"{folder}/{key}"))
                except ValueError as error:
                    raise _damaged(self.path / folder, error) from error
                chunk = stored.box(index)
                for box, part in zip(boxes, made, strict=True):
                    common = overlap(box, chunk)
                    if common is not None:
                        part[relative(common, box)] = values[relative(common, chunk)]
            return made

        return read

    def _chunk(self, name: str) -> bytes:
        """The bytes of a chunk. Zarr finds one that is cut short, but not one in which a bit has changed."""
        file = self.path / name
        try:
            opened = open_bytes(file, self.reads)
            content = opened.read(Runs(0, opened.size)).tobytes()
        except CheckpointError as error:
            raise ValueError(str(error)) from error
        if zlib.crc32(content) != self._checksums.get(name):
            raise CorruptCheckpointError(
                f"{file}: found another content than {MANIFEST} has the CRC-32 of; copy or convert the model again"
            )
        return content

    def tokenizer(self) -> Tokenizer:
        with local_copy(self.path, (*TOKENIZER_FILES, "config.json", "generation_config.json")) as folder:
            return Tokenizer.from_folder(folder)

    def copy_tokenizer(self, folder: Path) -> None:
        with local_copy(self.path, TOKENIZER_FILES) as source:
            copy_tokenizer_files(source, folder)


class _StoredLeaf:
    """An array in chunks, as its description says. Decodes them in a store of memory, wherever they came from.

    Raises:
        ValueError: there is no description, or it describes nothing.
    """

    def __init__(self, description: bytes | None) -> None:
        context = ts.Context()
        self._store = ts.KvStore.open({"driver": "memory"}, context=context).result()
        if description is not None:
            self._store["zarr.json"] = description
        spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "fill_missing_data_reads": False}
        self._array = ts.open(spec, open=True, read=True, context=context).result()
        self.shape = tuple(self._array.shape)
        self.dtype = jnp.dtype(self._array.dtype.numpy_dtype)
        widths = self._array.chunk_layout.write_chunk.shape or ()
        self._chunk = tuple(width or n for width, n in zip(widths, self.shape, strict=True))

    def chunks_of(self, boxes: list[Box]) -> list[tuple[int, ...]]:
        """Every chunk that holds any of some boxes, once."""
        found: dict[tuple[int, ...], None] = {}
        for box in boxes:
            ranges = (range(a // width, -(-b // width)) for (a, b), width in zip(box, self._chunk, strict=True))
            found |= dict.fromkeys(product(*ranges) if volume(box) else ())
        return list(found)

    def box(self, index: tuple[int, ...]) -> Box:
        """Where a chunk lies."""
        return tuple(
            (i * width, min(n, (i + 1) * width)) for i, width, n in zip(index, self._chunk, self.shape, strict=True)
        )

    def decode(self, key: str, index: tuple[int, ...], content: bytes) -> np.ndarray:
        """The values of a chunk."""
        self._store[key] = content
        try:
            return self._array[tuple(slice(*pair) for pair in self.box(index))].read().result()
        finally:
            del self._store[key]


def _damaged(folder: Location, error: Exception) -> CorruptCheckpointError:
    reason = str(error).split("[source locations")[0].strip()
    return CorruptCheckpointError(
        f"{folder}: found no readable array ({reason[:200]}); copy or convert the model again"
    )


def _crc32(file: Path) -> int:
    return zlib.crc32(np.memmap(file, np.uint8, mode="r"))


def write_orbax(weights: Weights, folder: Path, *, layout: str | None = None) -> None:
    """Write weights and manifest into an existing folder.

    Args:
        weights: where they are split over devices, chunks end where the parts of the devices end.
        folder: where to.
        layout: noted in the manifest.
    """
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
    split = {} if layout is None else {"layout": layout}
    write_object(folder / MANIFEST, {"format_version": FORMAT_VERSION, **split, "leaves": leaves, "crc32": checksums})
