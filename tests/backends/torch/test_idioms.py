"""What several operations spell, and torch says in one call: found where the models write it, and nowhere else."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.reference import ReferenceBackend
from distaff.backends.rotation import rotate
from distaff.backends.torch.lowered import Target
from distaff.models.config import NormConfig
from distaff.models.layers import Machine, Norm, ParamFactory
from distaff.models.placement import OneDevice
from distaff.models.rope import RopeConfig, rotation

from .running import compare, lowered
from .test_operations import operations

MACHINE = Machine(ReferenceBackend(), OneDevice())
ULPS = {"float32": 16, "bfloat16": 2}


def called(function: Callable[..., Any], *args: Any) -> list[str]:
    """What a graph calls, in order."""
    return [line.split()[-1] for line in operations(lowered(function, *args).module)]


def normed(config: NormConfig, letters: str, sizes: dict[str, int]) -> Callable[..., Any]:
    def function(x: Any, scale: Any) -> Any:
        norm = Norm(config, letters, ParamFactory(nnx.Rngs(0), jnp.float32, sizes))
        norm.scale = nnx.Param(scale)
        return norm(x, MACHINE)

    return function


def random(rng: np.random.Generator, *shape: int, dtype: Any) -> np.ndarray:
    return rng.normal(size=shape).astype(jnp.dtype(dtype))


@given(rows=st.integers(1, 5), heads=st.integers(1, 3), width=st.integers(2, 9), seed=st.integers(0, 99))
@settings(max_examples=3, derandomize=True, database=None)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("letters", ["D", "H", "NH"])
def test_norms(letters: str, offset: float, dtype: str, rows: int, heads: int, width: int, seed: int) -> None:
    """Over the width of the model, each head, and all heads; with a scale that is stored less one, too."""
    rng, sizes = np.random.default_rng(seed), {"D": width, "H": width, "N": heads}
    shape = (rows, width) if letters == "D" else (rows, heads, width)
    x, scale = random(rng, *shape, dtype=dtype), random(rng, *(sizes[letter] for letter in letters), dtype=dtype)
    function = normed(NormConfig(eps=1e-5, offset=offset), letters, sizes)
    names = called(function, x, scale)
    assert "rms_norm" in names and "sqrt" not in names and len(names) <= (1 if offset == 0 else 6)
    compare(function, x, scale, ulps=ULPS[dtype], atol=1e-6)


@given(rows=st.integers(1, 5), heads=st.integers(1, 4), half=st.integers(1, 5), rest=st.integers(0, 3))
@settings(max_examples=4, derandomize=True, database=None)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotations(dtype: str, rows: int, heads: int, half: int, rest: int) -> None:
    """Of whole heads, and of their beginning."""
    rng, rope = np.random.default_rng(rows), RopeConfig(dim=2 * half)
    q, k = (random(rng, rows, each, 2 * half + rest, dtype=dtype) for each in (heads, 1))

    def function(q: Any, k: Any, positions: Any) -> Any:
        cos, sin = rotation(rope, positions)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    positions = rng.integers(0, 100, rows).astype(np.int32)
    names = called(function, q, k, positions)
    assert names.count("Rotation") == 1 and "sub" not in names  # the count of both stands before it
    compare(function, q, k, positions, ulps=ULPS[dtype], atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gates(dtype: str) -> None:
    x = random(np.random.default_rng(0), 5, 8, dtype=dtype)
    x[0, :3] = [np.inf, -np.inf, np.nan]
    x[0, 1] = -80  # -inf * 0 is NaN in one of them, and 0 in the other
    assert called(jax.nn.silu, x) == ["silu"]
    compare(jax.nn.silu, x, ulps=ULPS[dtype])


@given(size=st.integers(1, 9), count=st.integers(0, 9), side=st.sampled_from(["left", "right"]))
@settings(max_examples=8, derandomize=True, database=None)
@pytest.mark.parametrize("method", [None, "scan", "scan_unrolled", "compare_all", "sort"])
def test_places_in_a_table(method: str | None, size: int, count: int, side: str) -> None:
    """By each of JAX's ways, which compare otherwise; of numbers that are known, too."""
    rng = np.random.default_rng(size)
    table, sought = np.sort(rng.integers(-3, 5, size)).astype(np.int32), rng.integers(-5, 7, count).astype(np.int32)
    way: dict[str, Any] = {} if method is None else {"method": method}
    function = lambda table, sought: jnp.searchsorted(table, sought, side=side, **way)  # noqa: E731
    if method in (None, "scan", "compare_all"):
        assert called(function, table, sought) == ["searchsorted"]
    compare(function, table, sought)
    compare(lambda one: function(jnp.asarray(table), jnp.asarray(sought)) + one, np.int32(1))
    assert "searchsorted" not in called(function, table.astype(np.float32), sought)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x * jnp.sqrt(1 / (jnp.square(x).sum(-1, keepdims=True) / 3 + 1e-5)) * w,  # 8 are summed
        lambda x, w: x * jnp.sqrt(1 / (jnp.square(x + 1).sum(-1, keepdims=True) / 8 + 1e-5)) * w,
        lambda x, w: x * jnp.sqrt(2 / (jnp.square(x).sum(-1, keepdims=True) / 8 + 1e-5)) * w,
        lambda x, w: x * jnp.sqrt(1 / (jnp.square(x).sum(0, keepdims=True) / 8 + 1e-5)) * w,
        lambda x, w: jnp.concatenate([x[:, :4] * w[:4] - x[:, 4:] * w[4:], x[:, 4:] * w[:4] + x[:, 4:] * w[4:]], -1),
    ],
)
def test_what_is_spelled_otherwise_stays_as_it_is(function: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    x, w = random(rng, 8, 8, dtype="float32"), random(rng, 8, dtype="float32")
    names = called(function, x, w)
    assert not {"rms_norm", "Rotation"} & {*names}
    compare(function, x, w, ulps=8, atol=1e-6)


def test_norms_inside_that_are_wanted_themselves_keep_their_parts() -> None:
    def both(x: Any, w: Any) -> Any:
        root = jnp.sqrt(1 / (jnp.square(x).sum(-1, keepdims=True) / 8 + 1e-5))
        return x * root * w, root

    rng = np.random.default_rng(0)
    compare(both, random(rng, 8, 8, dtype="float32"), random(rng, 8, dtype="float32"), ulps=8, atol=1e-6)


def test_compilers_that_fuse_by_themselves_see_the_operations() -> None:
    x = np.ones((2, 8), np.float32)
    function = normed(NormConfig(eps=1e-5), "D", {"D": 8})
    traced = jax.jit(function).trace(x, x[0])
    from distaff.backends.torch.graph import lower

    graph = lower(traced.lojax.jaxpr, Target(reads_values=False)).module
    assert "sqrt" in "".join(operations(graph))
