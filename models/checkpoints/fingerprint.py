"""Tells checkpoints apart by what is in their files, without reading all of it."""

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from .byte_files import Location, ReadCount, open_bytes
from .random_weights import PREFIX
from .runs import Runs

_SUFFIXES: Final = {".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt"}
_FIRST_PART: Final = "-00001-of-"
"""In the name of a split GGUF file, as `open_checkpoint` wants it."""
_HEAD_BYTES: Final = 2**20
"""What a file begins with is hashed whole: the names, types and places of its tensors stand there."""
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096
_WHOLE_BYTES: Final = 2**25
"""Files up to this length are hashed whole, tokenizers among them."""


def fingerprint(path: Location) -> str:
    """A hash of a checkpoint: names and lengths of its files, small ones whole, of long ones the beginning and samples
    at regular distances.

    Other weights of the same shapes differ, since training changes nearly every number; a file of which a few numbers
    were changed may not. Times of files do not count, so that a copy is the same checkpoint.

    Args:
        path: as `open_checkpoint` takes it.

    Returns:
        16 hexadecimal digits.

    Raises:
        CheckpointError: a file cannot be read.
    """
    hashed = hashlib.sha256()
    if str(path).startswith(PREFIX):
        hashed.update(str(path).encode())
        return hashed.hexdigest()[:16]
    for file in _files(path):
        content = open_bytes(file, ReadCount())
        hashed.update(f"{file.name}\0{content.size}\0".encode())
        for runs in _samples(content.size):
            hashed.update(content.read(runs))
    return hashed.hexdigest()[:16]


def _files(path: Location) -> list[Location]:
    """Those that answers depend on; of an Orbax folder those beside distaff.json, which has checksums of the rest."""
    if path.is_file():
        stem, is_split, rest = path.name.rpartition(_FIRST_PART)
        count = int(rest.removesuffix(".gguf")) if is_split else 1
        return [path] + [path.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(2, count + 1)]
    found = (entry for entry in path.iterdir() if PurePosixPath(entry.name).suffix in _SUFFIXES and entry.is_file())
    return sorted(found, key=lambda entry: entry.name)


def _samples(size: int) -> Iterator[Runs]:
    if size <= _WHOLE_BYTES:
        yield Runs(0, size)
        return
    yield Runs(0, _HEAD_BYTES)
    distance = (size - _HEAD_BYTES - _SAMPLE_BYTES) // (_SAMPLES - 1)
    yield Runs(size - _SAMPLE_BYTES - distance * (_SAMPLES - 1), _SAMPLE_BYTES, (_SAMPLES,), (distance,))
