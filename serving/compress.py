"""Makes a smaller checkpoint, measures it, and leaves it only where it is good enough."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..backends.errors import InvalidParameterError, UsageError
from ..models.checkpoints import Checkpoint, fingerprint, open_checkpoint, resolve_model
from ..models.checkpoints.json_file import read_object, write_object
from ..models.checkpoints.saving import new_path
from ..models.compress import check_unrounded, parse_scheme, quantizer
from ..models.compress.kept_layers import KeptLayers
from ..models.compress.methods import check_method, quantized
from ..models.compress.rotate import check_rotatable, rotated, untied
from ..models.compress.sample_text import sample_text
from ..models.compress.saving import check_head, check_writable, write_quantized
from ..models.compress.turning import Turning
from ..models.families import config_from_hf
from .evaluate import ON_SAMPLE, Measured, Measurement
from .quality import Quality, QualityError

MIN_CALIBRATION = 256
"""A text of fewer tokens says too little of what goes into a matrix."""
DEFAULT_CALIBRATION = 4096


@dataclass(frozen=True)
class Compressed:
    """What came out: bytes of the weights before, as `dtype` has them, and in the files after; and the quality."""

    before: int
    after: int
    quality: Quality


def quantize_checkpoint(
    source: str,
    destination: Path,
    scheme: str,
    *,
    method: str = "rtn",
    rotate: bool = False,
    head: bool = False,
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    dtype: str = "bfloat16",
    measurement: Measurement = ON_SAMPLE,
    overwrite: bool = False,
    offline: bool | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Compressed:
    """Rounds a checkpoint's matrices and writes the result in the layout of compressed-tensors.

    The table of the vocabulary stays as it is.

    Args:
        scheme: as parse_scheme reads it.
        method: how numbers are chosen: rtn (to nearest), or with a text gptq, awq or smoothquant.
        rotate: turn the residual stream first, so that no channel of it stands out; a table that both reads and scores
            the vocabulary becomes two.
        head: round the matrix that scores the vocabulary too, where it is one of its own then.
        calibration, calibration_tokens: that text, by default a sample, and how much of it is read, by default
            DEFAULT_CALIBRATION.
        dtype: of what stays, and of activations wherever the result runs.
        measurement: of the result against the source in fp32; nothing is written where it is beyond a limit.
        progress: called with a stage (load, round), what is done of it and of how much.

    A method that reads a text keeps the layers that are done in DESTINATION.partial, until the destination is there or
    beyond a limit: the same call goes on behind them.

    Raises:
        DistaffError: any of its kinds; the destination is then untouched.
    """
    found = replace(parse_scheme(scheme, "scheme"), tables=None)
    checkpoint = open_checkpoint(resolve_model(source, offline=offline))
    check_unrounded(checkpoint)
    stored = config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    described = None
    if rotate:
        check_rotatable(config)
        described, config = untied(checkpoint.hf_config, config)
    if head:
        check_head(found, config)
    made = quantizer(found, config, head=head)
    check_writable(made, config)
    check_method(method, found, config)
    if method == "rtn" and not (calibration is None and calibration_tokens is None):
        raise UsageError("method rtn reads no text: leave calibration out, or choose gptq, awq or smoothquant")
    measurement.prepare(config, checkpoint.tokenizer())
    windows = (
        [] if method == "rtn" else calibration_windows(checkpoint, calibration, calibration_tokens, measurement.window)
    )
    before = 0
    rounds = Turning(made, stored) if rotate else made
    done = {"scheme": found.name, "method": method, "rotate": rotate, "head": head}
    run = done | {"dtype": dtype, "calibration": _hash(windows)}
    partial = destination.with_name(f"{destination.name}.partial")

    def counted(spec: Any, leaf: Any) -> Any:
        nonlocal before
        before += leaf.nbytes
        return rounds(spec, leaf) if method == "rtn" else leaf

    with new_path(destination, overwrite=overwrite) as folder:
        folder.mkdir()
        kept = None if method == "rtn" else KeptLayers(partial, {"model": fingerprint(checkpoint.path), **run})
        weights = checkpoint.load_weights(
            stored, dtype=jnp.dtype(dtype), made=counted, progress=lambda done, total: progress("load", done, total)
        )
        if method == "rtn":
            weights = rounds.whole(weights) if isinstance(rounds, Turning) else weights
        else:
            weights = quantized(
                rotated(weights, stored) if rotate else weights,
                config,
                made,
                method,
                windows,
                kept=kept,
                progress=lambda done, total: progress("round", done, total),
            )
        told: dict[str, Any] = done | {"source": Path(source).name}
        write_quantized(weights, found, folder, config=config, source=checkpoint, described=described, told=told)
        del weights
        try:
            quality = measurement.of(Measured(str(folder), dtype=dtype), source, offline=offline)
        except QualityError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        note(folder, told | quality.to_dict())
        after = stored_bytes(folder)
    shutil.rmtree(partial, ignore_errors=True)
    return Compressed(before, after, quality)


def _hash(windows: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(windows).encode()).hexdigest()[:16]


def note(folder: Path, told: Mapping[str, Any]) -> None:
    """Writes what was done and measured into a checkpoint's config.json."""
    write_object(folder / "config.json", {**read_object(folder / "config.json"), "distaff": dict(told)})


def stored_bytes(folder: Path) -> int:
    """Of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def calibration_windows(checkpoint: Checkpoint, text: str | None, tokens: int | None, size: int) -> list[list[int]]:
    """A text to calibrate with, in pieces.

    Raises:
        InvalidParameterError: it is too short.
    """
    text = sample_text("calibration") if text is None else text
    ids = checkpoint.tokenizer().encode(text)[: tokens or DEFAULT_CALIBRATION]
    if len(ids) < MIN_CALIBRATION:
        raise InvalidParameterError("calibration", f"{len(ids)} tokens", f"a text of at least {MIN_CALIBRATION} tokens")
    return [ids[first : first + size] for first in range(0, len(ids), size)]
