"""Prunes a checkpoint, measures it, and leaves it only where it is good enough."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..backends.errors import UnsupportedError, UsageError
from ..models.checkpoints import open_checkpoint, resolve_model
from ..models.checkpoints.export import text_only
from ..models.checkpoints.saving import new_path, save
from ..models.compress import check_unrounded
from ..models.compress.calibrate import calibrate
from ..models.compress.prune import Pruning, check_pruning, counted, parse_pruning, sparse, zeros
from ..models.compress.prune_structure import (
    angular_distances,
    narrowed,
    narrowed_config,
    shortened,
    shortened_config,
)
from ..models.compress.smaller import smaller_hf
from ..models.config import ModelConfig
from ..models.decoder import Weights
from ..models.families import config_from_hf
from .compress import calibration_windows, note
from .evaluate import ON_SAMPLE, Measured, Measurement
from .quality import Quality


@dataclass(frozen=True)
class Pruned:
    """What came out.

    Attributes:
        parameters_before, parameters: numbers that the model had, and has.
        told: what was done; with single weights `zeros`, the share of zeros, with layers `removed`.
        quality: against the source in fp32.
    """

    parameters_before: int
    parameters: int
    told: dict[str, Any]
    quality: Quality


def prune_checkpoint(
    source: str,
    destination: Path,
    *,
    pattern: str = "unstructured",
    method: str | None = None,
    sparsity: float | None = None,
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    dtype: str = "bfloat16",
    measurement: Measurement = ON_SAMPLE,
    overwrite: bool = False,
    offline: bool | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Pruned:
    """Takes weights, heads, channels or layers out of a checkpoint and writes what is left as safetensors.

    Args:
        pattern, method, sparsity: as parse_pruning reads them.
        calibration, calibration_tokens: the text by which is chosen, by default a sample, and how much of it is read.
        dtype: to write, and to measure in.
        measurement: of the result against the source in fp32; nothing is written where it is beyond a limit.
        progress: called with a stage (load, read), what is done of it and of how much.

    Raises:
        DistaffError: any of its kinds; the destination is then untouched.
    """
    pruning = parse_pruning(pattern, method, sparsity)
    checkpoint = open_checkpoint(resolve_model(source, offline=offline))
    check_unrounded(checkpoint)
    loaded = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    hf, config = text_only(checkpoint.hf_config, loaded)
    check_pruning(pruning, config)
    starts = _check_describable(pruning, hf, config)
    if not pruning.reads and not (calibration is None and calibration_tokens is None):
        raise UsageError("method magnitude reads no text: leave calibration out, or choose wanda or sparsegpt")
    measurement.prepare(config, checkpoint.tokenizer())
    windows = (
        calibration_windows(checkpoint, calibration, calibration_tokens, measurement.window) if pruning.reads else []
    )

    with new_path(destination, overwrite=overwrite) as folder:
        weights = checkpoint.load_weights(
            loaded, dtype=jnp.float32, progress=lambda done, total: progress("load", done, total)
        )
        before = _count(weights)
        reading = partial(progress, "read")
        told: dict[str, Any] = {**pruning.told(), "source": Path(source).name}
        kept = list(range(config.num_layers))
        if pruning.pattern == "layers":
            block, _ = counted(pruning, config, 0)
            distances = angular_distances(config, weights, windows, block, progress=reading)
            first = min(starts, key=lambda start: distances[start])
            kept = [layer for layer in kept if not first <= layer < first + block]
            told |= {"removed": list(range(first, first + block)), "angular_distance": float(distances[first])}
            weights, small = shortened(weights, config, kept)
        else:
            inputs = calibrate(config, weights, windows, progress=reading)
            if pruning.structured:
                weights, small = narrowed(weights, config, pruning, inputs)
            else:
                weights, small = sparse(weights, config, pruning, inputs), config
                told["zeros"] = zeros(weights, config)
            del inputs
        described = smaller_hf(hf, config, small, kept)
        save(
            weights,
            config=small,
            source=checkpoint,
            destination=folder,
            format="safetensors",
            dtype=dtype,
            described=described,
        )
        parameters = _count(weights)
        del weights
        quality = measurement.of(Measured(str(folder), dtype=dtype), source, offline=offline)
        told |= {"parameters_before": before, "parameters": parameters}
        note(folder, told | quality.to_dict())
    return Pruned(before, parameters, told, quality)


def _check_describable(pruning: Pruning, hf: dict[str, Any], config: ModelConfig) -> list[int]:
    """Where a run of layers may begin to go such that the family can say what is left; [0] where no layers go.

    Raises:
        UnsupportedError: it cannot.
    """
    everything = range(config.num_layers)
    if pruning.pattern != "layers":
        if pruning.structured:
            smaller_hf(hf, config, narrowed_config(config, pruning), everything)
        return [0]
    block, total = counted(pruning, config, 0)
    found, refused = [], None
    for start in range(total - block + 1):
        kept = [layer for layer in everything if not start <= layer < start + block]
        try:
            smaller_hf(hf, config, shortened_config(config, kept), kept)
        except UnsupportedError as error:
            refused = error
        else:
            found.append(start)
    if not found and refused is not None:
        raise refused
    return found


def _count(weights: Weights) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(weights))
