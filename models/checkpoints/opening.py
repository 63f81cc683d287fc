"""Which format a file or folder has."""

from pathlib import Path

from ..errors import CheckpointError, ModelNotFoundError
from .base import Checkpoint
from .byte_files import Location
from .gguf import GGUFCheckpoint
from .hf_folder import HFFolder
from .orbax import MANIFEST, OrbaxFolder
from .random_weights import PREFIX, RandomCheckpoint
from .remote import RemotePath, is_url


def open_checkpoint(path: Location | str) -> Checkpoint:
    """Open a checkpoint: reads and checks its configuration and headers, no weights.

    Args:
        path: a Hugging Face folder, a .gguf file or a folder with one, an Orbax folder written by Distaff, the URL of
            any of these, or what `resolve_model` returned for `random:NAME`.

    Raises:
        ModelNotFoundError: there is nothing there.
        CheckpointError: it is none of these, or it is damaged.
    """
    if isinstance(path, str):
        path = RemotePath(path) if is_url(path) else Path(path)
    if str(path).startswith(PREFIX):
        return RandomCheckpoint(str(path))
    if not path.exists():
        raise ModelNotFoundError(f"{path}: found no such file or folder, expected a checkpoint")
    if path.is_file():
        return _open_file(path)
    if (path / MANIFEST).is_file():
        return OrbaxFolder(path)
    if (path / "config.json").is_file():
        return HFFolder(path)
    files = sorted(path.glob("*.gguf"))
    first_parts = [file for file in files if "-00001-of-" in file.name]
    if len(files) == 1 or (first_parts and len(first_parts) == 1):
        return GGUFCheckpoint((first_parts or files)[0])
    found = (
        f"{len(files)} GGUF files; name one"
        if files
        else ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
    )
    raise CheckpointError(
        f"{path}: found {found}; expected config.json with safetensors, {MANIFEST}, or one .gguf file"
    )


def _open_file(path: Location) -> Checkpoint:
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix == ".gguf" or magic == b"GGUF":
        return GGUFCheckpoint(path)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise CheckpointError(
            f"{path}: found a file, expected the folder that holds it with config.json; give the folder"
        )
    raise CheckpointError(f"{path}: found a file that starts with {magic!r}, expected a .gguf file or a folder")
