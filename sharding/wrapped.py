"""A backend that is another one but for what a subclass says."""

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Array, Int

from ..backends.base import Backend


def _of_inner(name: str) -> Any:
    return property(lambda self: getattr(self.inner, name), doc=f"Backend.{name} of the inner one.")


@dataclass(frozen=True)
class Wrapped:
    """
    Args:
        inner: what computes everything else.
    """

    inner: Backend

    name = _of_inner("name")
    capabilities = _of_inner("capabilities")
    page_size = _of_inner("page_size")
    kernels = _of_inner("kernels")
    compiler_options = _of_inner("compiler_options")
    check = _of_inner("check")
    prepare_params = _of_inner("prepare_params")
    linear = _of_inner("linear")
    linears = _of_inner("linears")
    grouped_linear = _of_inner("grouped_linear")
    silu_gate = _of_inner("silu_gate")
    rms_norm = _of_inner("rms_norm")
    rotate = _of_inner("rotate")
    rounded_norm = _of_inner("rounded_norm")
    rounded_gate = _of_inner("rounded_gate")
    embed = _of_inner("embed")
    layer_loop = _of_inner("layer_loop")
    ragged_attention = _of_inner("ragged_attention")
    dense_attention = _of_inner("dense_attention")
    allocate_cache = _of_inner("allocate_cache")
    compile = _of_inner("compile")
    put = _of_inner("put")
    get = _of_inner("get")
    memory = _of_inner("memory")
    buckets = _of_inner("buckets")

    def with_rows(self, count: Int[Array, ""]) -> "Wrapped":
        return replace(self, inner=self.inner.with_rows(count))
