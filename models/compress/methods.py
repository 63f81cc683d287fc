"""How numbers are chosen: to nearest, or layer by layer so that outputs on a text change little."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Final

import jax.numpy as jnp
import numpy as np

from ...backends.base import PyTree
from ...backends.errors import InvalidParameterError
from ...backends.quantized import Quantized, is_quantized, packed
from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from .calibrate import Inputs, Passage, layer_paths
from .gptq import gptq
from .group_scales import least_error_scales, nearest_scales, to_numbers
from .kept_layers import KeptLayers, Leaves
from .quantize import Quantizer
from .scheme import Scheme
from .smooth import awq, check_smooth, smooth, smoothquant

METHODS: Final = ("rtn", "gptq", "awq", "smoothquant")


def check_method(method: str, scheme: Scheme, config: ModelConfig) -> None:
    """Declines what does not go together, before anything is read.

    Raises:
        InvalidParameterError: an unknown method, or one that is not for this scheme.
        UnsupportedError: nor for this family.
    """
    if method not in METHODS:
        raise InvalidParameterError("method", method, f"one of {', '.join(METHODS)}")
    whole, alone = scheme.kind != "float8_e4m3fn", not scheme.activations
    fits = {"gptq": whole, "awq": whole and alone, "smoothquant": not alone}.get(method, True)
    meant = {"gptq": "whole numbers", "awq": "whole numbers as weights alone", "smoothquant": "rounded activations"}
    if not fits:
        raise InvalidParameterError("method", method, f"another with {scheme.name}: {method} is for {meant[method]}")
    if method in ("awq", "smoothquant"):
        check_smooth(config)


def quantized(
    weights: Weights,
    config: ModelConfig,
    made: Quantizer,
    method: str,
    windows: Sequence[Sequence[int]],
    *,
    kept: KeptLayers | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """The weights with matrices rounded by a method that reads a text; `weights` is consumed.

    One layer after the other, each on what the rounded ones in front of it make of the text.

    Args:
        weights: in the checkpoint's form, in floating point.
        made: rounds what is no matrix of a layer.
        method: one that check_method lets pass, other than rtn.
        windows: the text as token ids, each window read from nothing.
        kept: layers that an earlier run finished, and where to put those of this one.
        progress: called with layers done and their number.
    """
    specs = weight_specs(config, jnp.float32)
    flat = flatten(weights)
    weights.clear()
    passage = Passage(config, unflatten(flat), windows, samples=method == "smoothquant")
    taken = _layers(flat, config)
    result = {path: made(specs[path], flat.pop(path)) for path in list(flat)}
    parts: dict[str, list[PyTree]] = {}
    for number, (entries, leaves) in enumerate(zip(layer_paths(config), taken, strict=True)):
        found = None if kept is None else kept.load(number)
        if found is None:
            keyed = {key: specs[path] for key, (path, _) in entries.items()}
            found = _layer(passage, number, leaves, keyed, made, method)
            if kept is not None:
                kept.save(number, found)
        leaves.clear()
        for key, leaf in found.items():
            parts.setdefault(entries[key][0], []).append(leaf)
        if number + 1 < config.num_layers:
            passage.go_on(number, found)
        progress(number + 1, config.num_layers)
    for path in list(parts):
        result[path] = _stacked(parts.pop(path))
    return unflatten({path: result[path] for path in specs})


def _layers(flat: dict[str, PyTree], config: ModelConfig) -> list[Leaves]:
    """The leaves of each layer; those of `flat` that are cut up so are taken out of it, one after the other."""
    found: list[Leaves] = [{} for _ in config.layers]
    for path, spec in weight_specs(config, jnp.float32).items():
        if spec.layers is not None:
            leaf = np.asarray(flat.pop(path))
            for number, layer in enumerate(spec.layers):
                found[layer][spec.key] = leaf[number].copy()
    return found


def _layer(
    passage: Passage,
    number: int,
    leaves: Leaves,
    specs: Mapping[str, WeightSpec],
    made: Quantizer,
    method: str,
) -> Leaves:
    config, scheme = passage.config, made.scheme
    dtypes = {key: leaf.dtype for key, leaf in leaves.items()}
    seen = passage.watch(number, leaves)
    moved = {key: leaf.astype(np.float32) for key, leaf in leaves.items()}
    if method != "gptq":
        choose = smoothquant(scheme.kind) if method == "smoothquant" else awq(lambda matrix: _nearest(matrix, scheme))
        single = {key: inputs[0] for key, inputs in seen.items()}
        moved, single = smooth(moved, config, config.layers[number], single, choose)
        seen = {key: [inputs] for key, inputs in single.items()}
    result: Leaves = {}
    for key, leaf in moved.items():
        spec = specs[key]
        if made.plan(spec) is None:
            result[key] = leaf.astype(dtypes[key])
        elif scheme.kind == "float8_e4m3fn" or key not in seen:
            # Quantizer's plans are of stacked leaves.
            made_leaf = made(spec, jnp.asarray(leaf, dtypes[key])[None])
            result[key] = replace(made_leaf, values=made_leaf.values[0], scale=made_leaf.scale[0])
        else:
            result[key] = _rounded(leaf, jnp.dtype(dtypes[key]), spec, made, seen[key], method)
    return result


def _rounded(
    leaf: np.ndarray, dtype: jnp.dtype, spec: WeightSpec, made: Quantizer, seen: list[Inputs], method: str
) -> Quantized:
    """A leaf of one layer, each expert's matrix by itself: scales of the least error, and numbers."""
    plan = made.plan(spec)
    assert plan is not None
    kind, groups, activations = plan
    end = len(spec.shape) - spec.contracted
    width, count = prod(spec.shape[end:]), prod(groups[end:])
    numbers, scales = [], []
    for matrix, inputs in zip(leaf.reshape(len(seen), -1, width), seen, strict=True):
        each = np.diag(inputs.products)
        importance = each if each.any() else np.ones(width, np.float32)  # an expert that no token went to
        scales.append(least_error_scales(matrix, importance, kind, width // count))
        if method == "awq" or not each.any():
            numbers.append(to_numbers(matrix / np.repeat(scales[-1], width // count, axis=1), kind))
        else:
            numbers.append(gptq(matrix, inputs.products, scales[-1], kind))
    values = jnp.asarray(np.stack(numbers).reshape(leaf.shape))
    shape = (*leaf.shape[: leaf.ndim - spec.contracted], *groups[end:])
    scale = jnp.asarray(np.stack(scales).reshape(shape))
    return Quantized(packed(values) if kind == "int4" else values, scale, kind, dtype, activations)


def _nearest(matrix: np.ndarray, scheme: Scheme) -> np.ndarray:
    """A matrix [N, K] as it comes out of rounding to nearest."""
    group = scheme.group or matrix.shape[1]
    scales = np.repeat(nearest_scales(matrix, scheme.kind, group), group, axis=1)
    return to_numbers(matrix / scales, scheme.kind) * scales


def _stacked(parts: list[PyTree]) -> PyTree:
    first = parts[0]
    if not is_quantized(first):
        return jnp.asarray(np.stack(parts))
    values, scale = (jnp.stack([getattr(part, name) for part in parts]) for name in ("values", "scale"))
    return Quantized(values, scale, first.kind, first.dtype, first.activations)
