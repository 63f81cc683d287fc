"""What `verify-device` looks at: a backend's operations against the reference, on the device that the backend compiles
for; the reference runs on the one that JAX computes on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..backends.base import AttentionSpec, Backend, CacheGroup, RaggedIndex
from ..backends.errors import UnsupportedError
from ..backends.reference import ReferenceBackend
from ..models.decoder import init_weights
from ..models.families import config_from_hf
from ..serving import EngineConfig, Request, SamplingParams, build_engine
from ..serving.limits import MachineLimits

BOUNDS = {"float32": 2e-5, "bfloat16": 3e-2}
"""Largest differences from the reference in fp32, of outputs about 1 in size; bf16 rounds inputs and results."""

_ROWS, _PAGES_PER_ROW = 4, 4
_LONG_SECONDS, _CALLS = 0.005, 32


@dataclass(frozen=True)
class Check:
    """One line of the report. `error` is the largest difference found; `facts` is for machines."""

    name: str
    passed: bool
    found: str
    error: float | None = None
    bound: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shape:
    """Heads of one attention call."""

    name: str
    num_kv_heads: int
    groups: int
    head_dim: int
    spec: AttentionSpec
    sinks: bool = False


SHAPES = (
    Shape("llama 32/8 x 128", 8, 4, 128, AttentionSpec(128**-0.5)),
    Shape("smollm2 9/3 x 64", 3, 3, 64, AttentionSpec(0.125)),
    Shape("gpt-oss 64/8 x 64, window, sinks", 8, 8, 64, AttentionSpec(0.125, window=100), sinks=True),
    Shape("gemma 2 8/4 x 256, cap", 4, 2, 256, AttentionSpec(1 / 16, soft_cap=50.0)),
    Shape("phi 7/1 x 80", 1, 7, 80, AttentionSpec(80**-0.5)),
)


def attention(backend: Backend, dtype: str) -> Iterator[Check]:
    """A ragged prompt, a mixed batch and a decode step of each shape, over shuffled pages."""
    for shape in SHAPES:
        name = f"attention, {shape.name}, {dtype}"
        try:
            errors = _attention_errors(backend, shape, dtype)
        except UnsupportedError as error:
            yield Check(name, True, f"declined: {error}")
            continue
        worst, bound = max(errors.values()), BOUNDS[dtype]
        found = ", ".join(f"{step} {error:.1e}" for step, error in errors.items())
        yield Check(name, worst <= bound, found, worst, bound, dict(errors))


def _attention_errors(backend: Backend, shape: Shape, dtype: str) -> dict[str, float]:
    page, rng = backend.page_size, np.random.default_rng(0)
    group = CacheGroup(2, shape.num_kv_heads, shape.head_dim, shape.spec.window)
    backend.check([group], dtype=jnp.dtype(dtype), kv_dtype=jnp.dtype(dtype), page_size=page)
    oracle, num_pages = ReferenceBackend(), _ROWS * _PAGES_PER_ROW
    caches = [
        of.allocate_cache(group, num_pages=num_pages, page_size=page, dtype=kind)
        for of, kind in ((backend, dtype), (oracle, "float32"))
    ]
    table = jnp.asarray(rng.permutation(num_pages).reshape(_ROWS, -1), jnp.int32)
    most = _PAGES_PER_ROW * page // 2
    lens, errors = np.zeros(_ROWS, int), {}
    for step, counts in {
        "prefill": [most, 1, page, 0],
        "mixed": [1, page + 1, 1, 2 * page - 1],
        "decode": [1, 1, 1, 1],
    }.items():
        lens += counts
        size = -(-sum(counts) // 16) * 16
        draw = lambda heads, size=size: jnp.asarray(rng.normal(size=(size, heads, shape.head_dim)), dtype)  # noqa: E731
        q, k, v = draw(shape.num_kv_heads * shape.groups), draw(shape.num_kv_heads), draw(shape.num_kv_heads)
        sinks = jnp.asarray(rng.normal(size=q.shape[1]), jnp.float32) if shape.sinks else None
        index = RaggedIndex(
            table,
            jnp.asarray(np.cumsum([0, *counts]), jnp.int32),
            jnp.asarray(np.where(np.asarray(counts) > 0, lens, 0), jnp.int32),
            1 if step == "decode" else None,
        )
        outs = []
        for which, (of, kind) in enumerate(((backend, dtype), (oracle, "float32"))):
            operands = [x.astype(kind) for x in (q, k, v)]
            out, caches[which] = _run(
                of, partial(_attend, of, shape.spec), *operands, caches[which], jnp.int32(1), index, sinks
            )
            outs.append(np.asarray(out).astype(np.float32))
        errors[step] = float(np.abs(outs[0] - outs[1]).max())
    return errors


def _attend(of: Backend, spec: AttentionSpec, *operands: Any) -> Any:
    *most, sinks = operands
    return of.ragged_attention(*most, spec=spec, sinks=sinks)


def _run(backend: Backend, function: Callable[..., Any], *args: Any) -> Any:
    """A function of arrays, compiled and run by the backend, on its device."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    return backend.compile(function, shapes)(*args)


def products(backend: Backend, dtype: str) -> Iterator[Check]:
    """Dense attention and the multiplications by weights."""
    rng, bound = np.random.default_rng(0), BOUNDS[dtype]
    wide = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    oracle = ReferenceBackend()
    x, weight = wide(24, 256), wide(1, 320, 256) / 16
    experts, sizes = wide(1, 3, 320, 256) / 16, jnp.asarray([9, 0, 15], jnp.int32)
    tree = {"segments": {"mlp": {"up": {"weight": weight}, "experts": {"gate": experts}}}}
    packed = backend.prepare_params(tree)["segments"]["mlp"]

    def layer(weights: Any, run: Callable[..., jax.Array], like: jax.Array, *args: Any) -> Any:
        def call(weights: Any, *args: Any) -> jax.Array:
            return backend.layer_loop(lambda _, w, i: run(w, *args), jnp.zeros(like.shape, dtype), weights, 1)

        return _run(backend, call, weights, *args)

    exact = oracle.linear(x.astype(jnp.float32), weight[0].astype(jnp.float32), "TD,FD->TF")
    got = layer(packed["up"]["weight"], lambda w, x: backend.linear(x, w, "TD,FD->TF"), exact, x)
    yield _compare(f"linear, {dtype}", got, exact, bound)
    exact = oracle.grouped_linear(x.astype(jnp.float32), experts[0].astype(jnp.float32), sizes)
    got = layer(
        packed["experts"]["gate"], lambda w, *args: backend.grouped_linear(args[0], w, args[1]), exact, x, sizes
    )
    yield _compare(f"grouped linear, {dtype}", got, exact, bound)
    q, k, v = wide(2, 300, 8, 128), wide(2, 300, 2, 128), wide(2, 300, 2, 128)
    lengths, spec = jnp.asarray([300, 77], jnp.int32), AttentionSpec(128**-0.5)
    exact = oracle.dense_attention(
        q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32), spec, lengths=lengths
    )
    dense = lambda q, k, v, lengths: backend.dense_attention(q, k, v, spec, lengths=lengths)  # noqa: E731
    got = _run(backend, dense, q, k, v, lengths)
    yield _compare(f"dense attention, {dtype}", got, exact, bound)


def _compare(name: str, got: Any, exact: jax.Array, bound: float) -> Check:
    error = float(np.abs(np.asarray(got).astype(np.float32) - np.asarray(exact)).max())
    scale = max(1.0, float(jnp.abs(exact).max()) / 4)
    return Check(name, error <= bound * scale, f"{error:.1e}", error, bound * scale)


def engine(backend: Backend) -> Iterator[Check]:
    """A small random model: the reference's tokens, and nothing compiled once it is warm."""
    hf = dict(
        model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=512, hidden_size=256, intermediate_size=512,
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
        rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True,
    )  # fmt: skip
    config, rng = config_from_hf(hf), np.random.default_rng(0)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    prompts = [tuple(rng.integers(0, 512, int(count)).tolist()) for count in rng.integers(1, 200, 24)]
    answers, compiles, unexpected = [], 0, 0
    for of in (backend, ReferenceBackend()):
        weights = jax.tree.map(lambda leaf: leaf * 6, init_weights(config, seed=0, dtype=jnp.float32))
        with build_engine(config, weights, of, EngineConfig(max_batch=8, max_step_tokens=128)) as running:
            running.warm_up()
            results = running.generate([Request(prompt, params) for prompt in prompts])
            answers.append([result.token_ids for result in results])  # pyright: ignore[reportAttributeAccessIssue]
            if of is backend:
                compiles, unexpected = running.metrics.compiles, running.metrics.unexpected_compiles
    same = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    # A decision that is close to even may fall otherwise.
    found = f"{same} of {len(prompts)} answers are the reference's"
    yield Check("engine, greedy tokens, float32", same >= len(prompts) - 1, found)
    yield Check(
        "engine, compiles", unexpected == 0, f"{compiles} while it warmed up, {unexpected} afterwards",
        facts={"compiles": compiles, "unexpected": unexpected},
    )  # fmt: skip


def speed(backend: Backend, dtype: str, limits: MachineLimits) -> Iterator[Check]:
    """Decode attention against the rate of memory, prefill attention and a matmul against that of arithmetic."""
    page, shape, rows, length = backend.page_size, SHAPES[0], 16, 2048
    group = CacheGroup(1, shape.num_kv_heads, shape.head_dim)
    per_row = -(-length // page)
    cache = backend.allocate_cache(group, num_pages=rows * per_row, page_size=page, dtype=dtype)
    table = jnp.arange(rows * per_row, dtype=jnp.int32).reshape(rows, -1)
    heads = shape.num_kv_heads * shape.groups

    def run(num_rows: int, queries: int) -> float:
        """Seconds of one call. Each call's queries are what the one before it gave, in one program: starting a program
        takes longer than a short call."""
        size, key = num_rows * queries, jax.random.key(0)
        q, kv = (jax.random.normal(key, (size, n, shape.head_dim), dtype) for n in (heads, shape.num_kv_heads))
        index = RaggedIndex(
            table[:num_rows],
            jnp.arange(num_rows + 1, dtype=jnp.int32) * queries,
            jnp.full(num_rows, length, jnp.int32),
            queries,
        )

        def chain(calls: int, q: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            def call(_: Any, state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
                return backend.ragged_attention(state[0], kv, kv, state[1], jnp.int32(0), index, shape.spec)

            return jax.lax.fori_loop(0, calls, call, (q, cache))

        def seconds(calls: int) -> float:
            nonlocal cache
            times: list[float] = []
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (q, cache))
            program = backend.compile(partial(chain, calls), shapes, (1,))
            given = backend.put(q)
            for _ in range(6):
                start = time.perf_counter()
                out, cache = program(given, cache)
                jax.block_until_ready((out, cache))
                times.append((time.perf_counter() - start) / calls)
            return min(times[1:])

        once = seconds(1)
        return once if once > _LONG_SECONDS else seconds(_CALLS)

    seconds = run(rows, 1)
    rate = 2 * rows * length * shape.num_kv_heads * shape.head_dim * jnp.dtype(dtype).itemsize / seconds
    yield _rate(f"decode attention, {rows} x {length} positions, {dtype}", rate, limits.bytes_per_s, "B/s")
    seconds = run(1, length)
    rate = 2 * length**2 * heads * shape.head_dim / seconds  # two products, half of them behind the causal mask
    yield _rate(f"prefill attention, {length} tokens, {dtype}", rate, limits.flops_per_s, "FLOP/s")


def _rate(name: str, rate: float, limit: float, unit: str) -> Check:
    found = f"{rate / 1e9:.1f} G{unit}, {rate / limit:.0%} of this machine's {limit / 1e9:.0f}"
    return Check(name, True, found, facts={"rate": rate, "limit": limit, "unit": unit})
