"""From one checkpoint format to another."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jax
import jax.numpy as jnp

from ...backends.errors import InvalidParameterError, UsageError
from ..config import ModelConfig
from ..decoder import flatten
from ..families import config_from_hf
from .base import OnBytes, Place
from .gguf_writer import TYPES, write_gguf
from .hub import resolve_model
from .opening import open_checkpoint
from .saving import FORMATS, Format, new_path, save

_DTYPES: Final = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ConvertReport:
    """What was written: leaves of the weights, and their bytes in memory."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class Split:
    """How a checkpoint is cut for a layout: its name, and where each leaf of a model lives for writing, whole leaves in
    the checkpoint's form. `place` raises what is wrong with the layout."""

    name: str
    place: Callable[[ModelConfig], Place]


def convert(
    source: str,
    destination: Path,
    *,
    to: Format,
    dtype: str | None = None,
    layout: Split | None = None,
    overwrite: bool = False,
    offline: bool | None = None,
    progress: OnBytes | None = None,
) -> ConvertReport:
    """Read a checkpoint in any format and write it in another.

    Args:
        source: what `--model` accepts.
        destination: the folder (or, for gguf, the file) to make.
        to: the format.
        dtype: of the weights written: float32, float16, bfloat16, and for gguf q8_0. None keeps the stored one;
            quantised weights become float32.
        layout: for orbax: chunks end where the parts of these devices end.
        overwrite: replace what is at the destination.
        offline: use the caches alone. None: as HF_HUB_OFFLINE says.
        progress: called with bytes read and written, and what both come to.

    Raises:
        DistaffError: any of its kinds; the destination is then untouched.
    """
    if to not in FORMATS:
        raise InvalidParameterError("to", to, f"one of {', '.join(FORMATS)}")
    known = tuple(TYPES) if to == "gguf" else _DTYPES
    if dtype is not None and dtype not in known:
        raise InvalidParameterError("dtype", dtype, f"one of {', '.join(known)}")
    if layout is not None and to != "orbax":
        raise UsageError(f"layout {layout.name}: {to} has no chunks that could end where its parts end; write orbax")
    checkpoint = open_checkpoint(resolve_model(source, offline=offline))
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    name = dtype or checkpoint.stored_dtype.name
    loaded = jnp.dtype(name if name in _DTYPES else "float32")
    place = _on_host if layout is None else layout.place(config)
    weights = checkpoint.load_weights(config, dtype=loaded, place=place, progress=_half(progress, 0))
    write = _half(progress, 1)
    if to == "gguf":
        with new_path(destination, overwrite=overwrite) as path:
            write_gguf(weights, path, config=config, source=checkpoint, dtype=name, progress=write)
    else:
        save(
            weights,
            config=config,
            source=checkpoint,
            destination=destination,
            format=to,
            overwrite=overwrite,
            layout=None if layout is None else layout.name,
            progress=write,
        )
    leaves = flatten(weights).values()
    return ConvertReport(len(leaves), sum(leaf.nbytes for leaf in leaves))


def _half(progress: OnBytes | None, half: int) -> OnBytes | None:
    """Progress of reading as the first half of the whole, of writing as the second."""
    if progress is None:
        return None
    return lambda done, total: progress(half * total + done, 2 * total)


def _on_host(_: object) -> jax.sharding.Sharding:
    try:
        return jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
