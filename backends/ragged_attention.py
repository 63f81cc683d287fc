"""Ragged attention as one named primitive.

Tracing a step leaves one `ragged_attention` equation per call in the jaxpr, whatever the backend makes of it. Tools
that read jaxprs (the layout sweep, the torch adapter) find attention by that name.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from .base import AttentionSpec, PyTree, RaggedIndex

ragged_attention_p = Primitive("ragged_attention")
ragged_attention_p.multiple_results = True


def bind(
    implementation: Callable[..., tuple[jax.Array, PyTree]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache: PyTree,
    layer: jax.Array,
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: jax.Array | None,
) -> tuple[jax.Array, PyTree]:
    """Calls `implementation` with these arguments through the primitive; arguments as Backend.ragged_attention."""
    operands, structure = jax.tree.flatten((q, k, v, cache, layer, index, sinks))
    out, *leaves = ragged_attention_p.bind(*operands, implementation=implementation, structure=structure, spec=spec)
    return out, jax.tree.unflatten(jax.tree.structure(cache), leaves)


def _run(*operands: Any, implementation: Callable[..., Any], structure: Any, spec: AttentionSpec) -> list[Any]:
    q, k, v, cache, layer, index, sinks = jax.tree.unflatten(structure, operands)
    out, cache = implementation(q, k, v, cache, layer, index, spec, sinks)
    return [out, *jax.tree.leaves(cache)]


def _shapes(*operands: Any, implementation: Callable[..., Any], structure: Any, spec: AttentionSpec) -> list[Any]:
    q, _, _, cache, *_ = jax.tree.unflatten(structure, operands)
    return [q, *jax.tree.leaves(cache)]


ragged_attention_p.def_impl(_run)
ragged_attention_p.def_abstract_eval(_shapes)
mlir.register_lowering(ragged_attention_p, mlir.lower_fun(_run, multiple_results=True))
