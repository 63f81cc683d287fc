"""JSON files of a checkpoint, read with a limit on size and errors that name the file."""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CorruptCheckpointError
from .byte_files import Location

MAX_BYTES = 256 * 2**20  # the index of the largest public checkpoints stays under 20 MB


def parse_object(text: bytes | str, *, source: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        CorruptCheckpointError: not JSON, a repeated key, or not an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"key {repeated!r} occurs twice")
        return found

    try:
        found: object = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8, bad JSON and absurd integers
        raise CorruptCheckpointError(
            f"{source}: found text that is not valid JSON ({str(error)[:200] or type(error).__name__}); "
            "fetch or write the file again"
        ) from error
    if not isinstance(found, dict):
        raise CorruptCheckpointError(
            f"{source}: found a JSON {type(found).__name__}, expected an object; fetch it again"
        )
    return found


def read_object(path: Location) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file is missing or cannot be read.
        CorruptCheckpointError: it is too large, or not a JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CorruptCheckpointError(f"{path}: found {size} bytes, expected a JSON file under {MAX_BYTES} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); the checkpoint needs this file") from error
    return parse_object(text, source=str(path))


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Writes an object as indented JSON; a file that was there is replaced at once, or not at all."""
    made = path.with_name(f"{path.name}.part")
    made.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    made.replace(path)
