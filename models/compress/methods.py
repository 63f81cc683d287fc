"""How numbers are chosen: to nearest, or so that outputs on a text change little."""

from collections.abc import Mapping
from math import prod
from typing import Final

import jax.numpy as jnp
import numpy as np

from ...backends.base import PyTree
from ...backends.errors import InvalidParameterError
from ...backends.quantized import Quantized, dequantized, packed
from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from .calibrate import Inputs, Key
from .gptq import gptq
from .quantize import Quantizer, to_nearest
from .scheme import Scheme
from .smooth import awq, folds, smooth, smoothquant

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
        list(folds(config))


def quantized(
    weights: Weights, config: ModelConfig, scheme: Scheme, method: str, inputs: Mapping[Key, Inputs]
) -> Weights:
    """The weights with matrices rounded; floating-point leaves are consumed.

    Args:
        method: one that check_method lets pass.
        inputs: what `calibrate` found; nothing for rtn.
    """
    specs, made = weight_specs(config, jnp.float32), Quantizer(scheme)
    flat = flatten(weights)
    del weights
    if method in ("awq", "smoothquant"):
        choose = smoothquant() if method == "smoothquant" else awq(lambda matrix: _nearest(matrix, scheme))
        host = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
        dtypes = {path: leaf.dtype for path, leaf in flat.items()}
        moved = smooth(host, config, inputs, choose)
        flat = {path: jnp.asarray(leaf, dtypes[path]) for path, leaf in moved.items()}
    result: dict[str, PyTree] = {}
    for path, spec in specs.items():
        leaf = flat.pop(path)
        seen = [inputs.get((path, number)) for number in range(leaf.shape[0] if spec.layers is not None else 1)]
        known = [each for each in seen if each is not None]
        if method == "gptq" and made.plan(spec) is not None and len(known) == len(seen):
            result[path] = _by_gptq(spec, np.asarray(leaf, np.float32), leaf.dtype, made, known)
        else:
            result[path] = made(spec, leaf)
    return unflatten(result)


def _by_gptq(spec: WeightSpec, leaf: np.ndarray, dtype: jnp.dtype, made: Quantizer, inputs: list[Inputs]) -> Quantized:
    plan = made.plan(spec)
    assert plan is not None
    kind, groups, activations = plan
    end = len(spec.shape) - spec.contracted
    width, count = prod(spec.shape[end:]), prod(groups[end:])
    matrices = leaf.reshape(len(inputs), -1, width)
    found = [gptq(matrix, seen.products, kind, width // count) for matrix, seen in zip(matrices, inputs, strict=True)]
    values = jnp.asarray(np.stack([numbers for numbers, _ in found]).reshape(spec.shape))
    scale = np.stack([scales for _, scales in found]).reshape(groups)
    return Quantized(
        packed(values) if kind == "int4" else values, jnp.asarray(scale), kind, jnp.dtype(dtype), activations
    )


def _nearest(matrix: np.ndarray, scheme: Scheme) -> np.ndarray:
    """A matrix [N, K] as it comes out of rounding to nearest."""
    rows, width = matrix.shape
    groups = rows, width // (scheme.group or width)
    return np.asarray(dequantized(to_nearest(jnp.asarray(matrix, jnp.float32), scheme.kind, groups, False)))
