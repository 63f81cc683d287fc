"""Writes a model to disk: whole or not at all."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...backends.errors import UsageError
from ..config import ModelConfig
from ..decoder import Weights
from ..errors import CheckpointError
from .base import Checkpoint, OnBytes
from .export import outgoing_tensors, text_only
from .json_file import write_object
from .orbax import write_orbax
from .safetensors_writer import MAX_SHARD_BYTES, write_safetensors

Format = Literal["safetensors", "orbax", "gguf"]
FORMATS: Final = ("safetensors", "orbax", "gguf")


def save(
    weights: Weights,
    *,
    config: ModelConfig,
    source: Checkpoint,
    destination: Path,
    format: Literal["safetensors", "orbax"],
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    layout: str | None = None,
    described: Mapping[str, Any] | None = None,
    progress: OnBytes | None = None,
) -> None:
    """Write weights with the configuration and tokenizer of the checkpoint that they came from.

    Args:
        weights: of `config`.
        config: the model's configuration.
        source: gives config.json, generation_config.json and the tokenizer's files.
        destination: the folder to make. It appears only when it is complete.
        format: `safetensors` is readable by transformers, `orbax` by Distaff alone.
        dtype: to convert to; as the weights are by default.
        overwrite: replace what is at the destination.
        max_shard_bytes: size of a safetensors shard.
        layout: for orbax, whose parts the weights lie in.
        described: what config.json says, where it is not what the source's does.
        progress: called with bytes written and their sum; once, at the end, for orbax.

    Raises:
        UsageError: the destination exists and `overwrite` is not set.
        CheckpointError: it cannot be written.
    """
    hf, config = text_only(source.hf_config if described is None else described, config)
    with new_path(destination, overwrite=overwrite) as folder:
        folder.mkdir()
        target = None if dtype is None else jnp.dtype(dtype)
        if format == "safetensors":
            tensors = outgoing_tensors(weights, config, target)
            write_safetensors(tensors, folder, max_shard_bytes=max_shard_bytes, progress=progress)
            target = tensors[0].dtype
        else:
            if target is not None:
                weights = jax.tree.map(lambda leaf: leaf.astype(target), weights)
            write_orbax(weights, folder, layout=layout)
            if progress is not None:
                total = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
                progress(total, total)
        write_object(folder / "config.json", _described(hf, target))
        if source.generation_config:
            write_object(folder / "generation_config.json", source.generation_config)
        source.copy_tokenizer(folder)


def _described(hf: dict[str, Any], dtype: jnp.dtype | None) -> dict[str, Any]:
    if dtype is None:
        return hf
    name = "dtype" if "dtype" in hf else "torch_dtype"
    return hf | {name: jnp.dtype(dtype).name}


@contextmanager
def new_path(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path beside the destination that takes its place when the block ends well, and goes away when it does not.

    Raises:
        UsageError: the destination exists and `overwrite` is not set.
        CheckpointError: the disk refuses.
    """
    if destination.exists() and not overwrite:
        raise UsageError(f"{destination}: found it there already, expected a new path; choose another, or --overwrite")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as scratch:
            made = Path(scratch) / destination.name
            yield made
            if destination.exists():
                destination.replace(Path(scratch) / "replaced")
            made.replace(destination)
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written ({error.strerror or error})") from error
