"""Runs a function of JAX by its torch graph and by JAX, and compares."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from distaff.backends.torch.array import DeviceArray, to_tensor
from distaff.backends.torch.graph import lower
from distaff.backends.torch.lowered import Lowered, Target
from distaff.backends.torch.names import torch

EAGER, STATIC = Target(), Target(reads_values=False)
"""For devices whose numbers the host may look at, and for those where shapes never depend on them."""


def lowered(function: Callable[..., Any], *args: Any, given: Collection[int] = ()) -> Lowered:
    return lower(jax.jit(function).trace(*args).lojax.jaxpr, Target(), given=given)


def on_torch(function: Callable[..., Any], *args: Any, target: Target = EAGER) -> Any:
    """What the torch graph gives, as numpy arrays."""
    traced = jax.jit(function).trace(*args)
    with torch.inference_mode():
        results = lower(traced.lojax.jaxpr, target).module(*(to_tensor(leaf, "cpu") for leaf in jax.tree.leaves(args)))
    leaves, structure = jax.tree.flatten(traced.out_info)
    arrays = []
    for tensor, leaf in zip(results, leaves, strict=True):
        assert tuple(tensor.shape) == leaf.shape, f"shape {tuple(tensor.shape)}, expected {leaf.shape}"
        arrays.append(np.asarray(DeviceArray(tensor, leaf.dtype)))
        assert arrays[-1].dtype == leaf.dtype, f"type {arrays[-1].dtype}, expected {leaf.dtype}"
    return jax.tree.unflatten(structure, arrays)


def compare(function: Callable[..., Any], *args: Any, ulps: float = 0, atol: float = 0) -> None:
    """Asserts that graphs of both kinds give what JAX gives: the same bits, or numbers so close."""
    want = jax.tree.leaves(jax.jit(function)(*args))
    got = [leaf for target in (EAGER, STATIC) for leaf in jax.tree.leaves(on_torch(function, *args, target=target))]
    for a, b in zip([*want, *want], got, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if ulps or atol:
            eps = float(jax.numpy.finfo(a.dtype).eps)
            np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=ulps * eps, atol=atol)
        else:
            wide = a.dtype if a.dtype.kind in "biu" else np.float64  # numpy knows no NaN among bfloat16
            np.testing.assert_array_equal(b.astype(wide), a.astype(wide))
