"""The TPU's decode attention, interpreted, against the reference, over pages full of NaN."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from distaff.backends.base import AttentionSpec
from distaff.backends.errors import UnsupportedError
from distaff.backends.kernel_work import KernelWork
from distaff.backends.tpu import cases, decode_kernel
from distaff.backends.tpu.cache import ScaledPages
from distaff.backends.tpu.decode import DecodeBlocks, check_decode, decode_attention, decode_shape
from distaff.backends.tpu.decode_copies import Copies
from distaff.backends.tpu.decode_work import decode_work

from .conftest import LAYER, Heads, Step, unpacked

ROWS, TOKENS = 4, 32


@dataclass(frozen=True)
class Case:
    """What one kernel is compiled for; `error` bounds the difference from the reference in fp32."""

    heads: Heads
    error: float
    dtype: str = "float32"
    kv_dtype: str = "float32"
    generation: str = "v6e"
    page: int = 16
    width: int = 5
    block: int = 32
    short: int = 0
    queries: int = 1
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    tokens: int = TOKENS

    @property
    def blocks(self) -> DecodeBlocks:
        return DecodeBlocks(self.block, 2**26, self.short)

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            self.heads.head_dim**-0.5 / (20 if self.kv_dtype == "int8" else 1), self.window, self.soft_cap
        )

    def step(self, rows: list[tuple[int, int]], seed: int) -> Step:
        return Step.drawn(
            self.heads, rows, page=self.page, width=self.width, seed=seed, dtype=self.dtype, kv_dtype=self.kv_dtype,
            max_query_len=self.queries, num_tokens=self.tokens,
        )  # fmt: skip

    def sink_values(self) -> jax.Array | None:
        return jnp.linspace(-1, 2, self.heads.num_heads) if self.sinks else None


slow = partial(pytest.param, marks=pytest.mark.slow)

# bf16 has 8 bits, and pairs of 8-bit floats have 8 bits; pairs of 8-bit integers have 14, and are up to 80 here.
QUICK = [
    Case(Heads(6, 2, 64), 1e-5),
    Case(Heads(7, 1, 96), 1e-5, window=20, soft_cap=2.0, sinks=True, generation="v5e"),
    Case(Heads(4, 2, 64), 1e-5, queries=3),
    Case(Heads(4, 2, 64), 2e-2, "bfloat16", "bfloat16", sinks=True),
    Case(Heads(2, 1, 128), 2e-2, "float32", "int8"),
    Case(Heads(2, 1, 128), 2e-2, "float32", "int8", width=9, block=128, short=32),
]
DEFAULT = (QUICK[1], QUICK[5])
SLOW = [
    Case(Heads(9, 3, 80), 1e-5, page=32, window=17),
    Case(Heads(3, 3, 192), 1e-5, block=16),
    Case(Heads(2, 1, 256), 1e-5, generation="v4", soft_cap=3.0),
    Case(Heads(16, 2, 64), 1e-5, queries=8, window=9, sinks=True),
    Case(Heads(16, 1, 64), 1e-5, page=64, width=2, block=64),
    Case(Heads(4, 2, 64), 2e-2, "bfloat16", "float8_e4m3fn"),
    Case(Heads(4, 2, 64), 2e-2, "float32", "float8_e4m3fn", page=32, queries=2, soft_cap=4.0),
    Case(Heads(4, 2, 64), 0.3, "bfloat16", "int8", generation="v5p", window=20),
    Case(Heads(4, 2, 64), 0.3, "float32", "int8", page=32, queries=2, generation="v5e"),
    Case(Heads(4, 2, 128), 2e-2, "bfloat16", "float8_e4m3fn", "tpu7x", width=40, block=512),
    Case(Heads(4, 2, 128), 0.5, "bfloat16", "int8", "tpu7x", page=32, width=40, block=512),
    Case(Heads(8, 4, 128), 2e-2, "bfloat16", "bfloat16", "tpu7x", width=70, block=1024, queries=2, window=300),
    Case(Heads(8, 4, 128), 2e-2, "bfloat16", "bfloat16", "tpu7x", width=140, block=2048, short=512),
    Case(Heads(4, 2, 64), 1e-5, width=9, block=128, short=32, window=70, sinks=True),
]


@cache
def attend(case: Case, **options: Any) -> Callable[..., Any]:
    run = partial(
        decode_attention, spec=case.spec, generation=case.generation, blocks=case.blocks, interpret=True, **options
    )
    return jax.jit(run)


def run(case: Case, step: Step, **arrays: Any) -> tuple[np.ndarray, np.ndarray]:
    sinks = case.sink_values()
    out, pages = attend(case)(step.q, step.k, step.v, step.pages, jnp.int32(LAYER), step.index, sinks=sinks, **arrays)
    return np.asarray(out.astype(jnp.float32)), unpacked(pages, case.heads)


@st.composite
def row_lengths(draw: st.DrawFn, case: Case) -> list[tuple[int, int]]:
    """(positions, new ones): none, one, around pages and blocks, as many as fit."""
    most, page, block = case.page * case.width, case.page, case.block
    short = case.short or block
    lengths = [0, 1, page - 1, page, page + 1, short, short + 1, block - 1, block, block + 1, most - 1, most]
    rows = []
    for _ in range(ROWS):
        length = min(draw(st.sampled_from(lengths)), most)
        rows.append((length, min(length, draw(st.integers(1, case.queries)))))
    return rows


def agree(case: Case, step: Step) -> None:
    out, cache = run(case, step)
    want, want_cache = step.wanted(case.spec, case.sink_values())
    difference = np.abs(out - want)[: step.num_new].max(initial=0)
    print(f"max |difference| {difference:.2e} of {case.error:.0e}")
    assert difference <= case.error
    np.testing.assert_array_equal(out[step.num_new :], 0)
    np.testing.assert_array_equal(cache[step.written], want_cache[step.written])


@pytest.mark.parametrize("case", [case if case in DEFAULT else slow(case) for case in QUICK], ids=str)
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_decode_is_the_references(case: Case, data: st.DataObject, seed: int) -> None:
    agree(case, case.step(data.draw(row_lengths(case)), seed))


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=str)
@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_decode_is_the_references_in_every_shape(case: Case, data: st.DataObject, seed: int) -> None:
    agree(case, case.step(data.draw(row_lengths(case)), seed))


@pytest.mark.parametrize("case", [slow(QUICK[0]), QUICK[4]], ids=str)
def test_rows_of_one_token_each_are_found_where_they_lie(case: Case) -> None:
    """As many tokens as rows, as in a decode step: an empty row between others has none, so one token is padding."""
    case = replace(case, tokens=ROWS)
    agree(case, case.step([(70, 1), (0, 0), (16, 1), (5, 1)], 6))


@pytest.mark.slow
def test_matrix_units_driven_by_hand() -> None:
    """Two blocks of four groups for each unit, over two chunks: every accumulator is used and taken from twice. Then a
    short block, of one group."""
    case = Case(Heads(8, 4, 128), 2e-2, "bfloat16", "bfloat16", "tpu7x", width=140, block=2048, short=512)
    agree(case, case.step([(2200, 1), (0, 0), (2048, 1), (3, 1)], 0))


def test_pages_behind_the_window_are_not_read() -> None:
    """The scheduler has freed them: their entries point to nothing."""
    case = QUICK[1]
    step = case.step([(70, 1), (5, 1), (0, 0), (80, 1)], 3)
    want, _ = run(case, step)
    table = step.table.copy()
    table[0, : (70 - 20) // 16], table[3, : (80 - 20) // 16] = -1, -1
    got, _ = run(case, replace(step, table=table))
    assert np.isfinite(want).all() and got.tobytes() == want.tobytes()


@pytest.mark.slow
def test_rows_with_more_queries_are_left_alone() -> None:
    case = QUICK[0]
    step = replace(case.step([(40, 1), (33, 9), (0, 0), (17, 1)], 4), max_query_len=None)
    given_out = jnp.full_like(step.q, 7.0)
    out, cache = run(case, step, out=given_out)
    want, _ = step.wanted(case.spec)
    np.testing.assert_allclose(out[[0, 10]], want[[0, 10]], atol=1e-5)
    np.testing.assert_array_equal(out[1:10], 7)
    np.testing.assert_array_equal(out[11:], 7)
    new = np.isnan(unpacked(step.pages, case.heads)[LAYER, step.table[1, 32 // 16], 0])
    np.testing.assert_array_equal(np.isnan(cache[LAYER, step.table[1, 32 // 16], 0]), new)


@pytest.mark.slow
def test_a_tree_of_candidates_and_log_sum_exps() -> None:
    """Three new tokens of which the third does not see the second."""
    case = QUICK[2]
    step = case.step([(37, 3), (16, 1), (0, 0), (2, 2)], 5)
    mask = np.zeros((TOKENS, 3), bool)
    mask[:6] = [[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]]
    out, pages, lse = attend(case, return_lse=True)(
        step.q, step.k, step.v, step.pages, jnp.int32(LAYER), step.index, mask=jnp.asarray(mask)
    )
    cache = unpacked(pages, case.heads)[LAYER]
    token = 0
    for row, (length, new) in enumerate(step.rows):
        keys, values = np.moveaxis(cache[step.table[row]].reshape(-1, *cache.shape[2:])[:length], 1, 0)
        for query in range(new):
            seen = np.concatenate([np.ones(length - new, bool), mask[token, :new]])
            repeated = (np.repeat(x[seen], 2, axis=1) for x in (keys, values))
            keys_seen, values_seen = repeated
            scores = np.einsum("NH,SNH->NS", np.asarray(step.q[token]), keys_seen) * case.spec.scale
            want_lse = np.log(np.exp(scores).sum(axis=1))
            np.testing.assert_allclose(lse[token], want_lse, atol=1e-5)
            weights = np.exp(scores - want_lse[:, None])
            np.testing.assert_allclose(out[token], np.einsum("NS,SNH->NH", weights, values_seen), atol=1e-5)
            token += 1
            assert query < new
    assert (np.asarray(lse[token:]) == -np.inf).all()


@pytest.mark.slow
def test_scales_per_head() -> None:
    """Keys and values of 8 bits that stand for others; new ones are divided and rounded."""
    case = replace(QUICK[4], heads=Heads(4, 2, 64))
    step = case.step([(40, 1), (16, 1), (1, 1), (0, 0)], 6)
    scales = jnp.asarray([[0.05, 0.02], [0.5, 2.0]])
    both = jnp.zeros((2, 2, 2)).at[LAYER].set(scales)
    k, v = step.k * scales[0][:, None].astype(step.k.dtype), step.v * scales[1][:, None].astype(step.v.dtype)
    spec = AttentionSpec(0.125)
    run = partial(decode_attention, spec=spec, generation="v6e", blocks=DecodeBlocks(32, 2**26), interpret=True)
    out, cache = jax.jit(run)(
        step.q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32), ScaledPages(step.pages, both),
        jnp.int32(LAYER), step.index,
    )  # fmt: skip
    stored = unpacked(cache.pages, case.heads)
    real = stored * np.asarray(both)[:, None, None, :, :, None]
    exact = replace(step, pages=jnp.asarray(real), k=step.k, v=step.v)
    tokens = [(39, 0), (15, 1), (0, 2)]
    k, v = (
        jnp.zeros_like(step.k, jnp.float32).at[:3].set(
            jnp.stack([real[LAYER, step.table[row, at // 16], at % 16, half] for at, row in tokens])
        )
        for half in (0, 1)
    )  # fmt: skip
    from distaff.backends.reference import reference_ragged_attention

    want, _ = reference_ragged_attention(
        step.q.astype(jnp.float32), k, v, exact.pages, jnp.int32(LAYER), step.index, spec
    )
    assert isinstance(cache, ScaledPages)
    assert np.abs(np.asarray(out - want))[:3].max() < 0.05


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the kernel's parts run, by the names of its model's counts, and the bytes of the copies that start."""
    found: Counter[str] = Counter()

    def count(name: str, by: int = 1) -> None:
        jax.debug.callback(lambda: found.update({name: by}))

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            count(name)
            return call(*arguments, **named)

        return run

    class Copy:
        def __init__(self, source: Any, *rest: Any) -> None:
            self.bytes = math.prod(source.shape) * source.dtype.itemsize
            self.copy, self.name = copy(source, *rest), ""
            self.wait = self.copy.wait

        def start(self) -> None:
            count("bytes", self.bytes)
            if self.name:
                count(self.name)
            self.copy.start()

        def named(self, name: str) -> "Copy":
            self.name = name
            return self

    copy, page, write_back = pltpu.make_async_copy, Copies._page, Copies._write_back
    kernel = decode_kernel._Kernel
    monkeypatch.setattr(pltpu, "make_async_copy", Copy)
    monkeypatch.setattr(Copies, "_page", lambda self, item, at: page(self, item, at).named("pages"))
    monkeypatch.setattr(
        Copies, "_write_back", lambda self, item: [(w, c.named("written")) for w, c in write_back(self, item)]
    )
    monkeypatch.setattr(kernel, "_softmax", counted("turns", kernel._softmax))
    monkeypatch.setattr(kernel, "_clear_page", counted("cleared", kernel._clear_page))
    return found


def compare(counts: Counter[str], work: KernelWork) -> None:
    assert counts.pop("bytes") == pytest.approx(work.hbm_bytes, rel=0.02)
    assert dict(counts) == {name: count for name, count in work.counts.items() if count}


@pytest.mark.parametrize(("window", "block", "short"), [(None, 32, 0), slow(None, 128, 32), slow(20, 32, 0)])
def test_its_model_of_its_work_counts_what_it_does(
    window: int | None, block: int, short: int, counts: Counter[str]
) -> None:
    case = Case(Heads(2, 1, 64), 2e-2, kv_dtype="bfloat16", window=window, block=block, short=short)
    step = case.step([(70, 1), (5, 1), (0, 0), (64, 1)], 7)
    run = partial(decode_attention, spec=case.spec, generation=case.generation, blocks=case.blocks, interpret=True)
    jax.block_until_ready(run(step.q, step.k, step.v, step.pages, jnp.int32(LAYER), step.index))
    jax.effects_barrier()
    work = decode_work(
        [length for length, _ in step.rows], [new for _, new in step.rows], num_heads=2, num_kv_heads=1, head_dim=64,
        page_size=16, kv_dtype="bfloat16", generation="v6e", table_width=5, window=window, blocks=case.blocks,
    )  # fmt: skip
    compare(counts, work)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [{"context": 1024}, {"context": 128, "longest": 8192}], ids=str)
def test_its_model_counts_what_it_does_on_a_shape_of_the_report(shape: dict[str, Any], counts: Counter[str]) -> None:
    """What `distaff bench kernels` is told of 64 rows, with the table's blocks."""
    case = cases.decode(generation="v6e", batch=64, page=16, **shape)
    q, k, v, cache = (jnp.zeros(x.shape, x.dtype) for x in case.abstract_args[:4])
    index = jax.tree.map(jnp.asarray, case.abstract_args[-1])
    spec = AttentionSpec(0.1)
    results = decode_attention(q, k, v, cache, jnp.int32(0), index, spec, generation="v6e", interpret=True)
    jax.block_until_ready(results)
    jax.effects_barrier()
    assert isinstance(case.work, KernelWork)
    compare(counts, case.work)


@pytest.mark.parametrize(
    ("generation", "change", "block", "short"),
    [
        ("v6e", {}, 1024, 256),
        ("tpu7x", {}, 2048, 512),
        ("v4", {"page_size": 16}, 512, 128),
        ("v6e", {"page_size": 256}, 1024, 0),
        ("v6e", {"table_width": 3}, 512, 0),
        ("tpu7x", {"page_size": 16}, 1024, 0),
        ("v6e", {"max_decode_len": 2}, 1024, 0),
        ("v6e", {"num_heads": 32, "num_kv_heads": 32}, 1024, 0),
        ("v6e", {"window": 128}, 256, 0),
        ("v6e", {"window": 900}, 1024, 256),
        ("v6e", {"token_scales": True, "kv_dtype": "int8"}, 1024, 256),
        ("tpu7x", {"token_scales": True, "kv_dtype": "int8"}, 2048, 0),
    ],
)
def test_blocks_are_no_longer_than_rows_and_short_where_that_gains(
    generation: str, change: dict[str, Any], block: int, short: int
) -> None:
    asked: dict[str, Any] = GOOD | {"page_size": 128, "generation": generation, "table_width": 64} | change
    shape = decode_shape(**asked)
    assert (shape.block, shape.short) == (block, short)
    assert [each.block for each in shape.passes] == ([block, short] if short else [block])


GOOD: dict[str, Any] = dict(
    num_heads=32, num_kv_heads=8, head_dim=128, page_size=16, kv_dtype="bfloat16", generation="v6e"
)


@pytest.mark.parametrize("generation", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_what_it_has_is_not_refused(generation: str) -> None:
    for head_dim in (64, 80, 96, 128, 192, 256):
        for num_heads, num_kv_heads in ((32, 8), (9, 3), (7, 1), (21, 3)):
            for page_size in (16, 32, 64, 128):
                check_decode(
                    num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size,
                    kv_dtype="bfloat16", generation=generation, max_decode_len=4,
                )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(generation="v3"), "generation v3, supported are v4, v5e"),
        (dict(page_size=24), "page size 24, supported are 16, 32"),
        (dict(kv_dtype="float16"), "on v6e kv dtype float16, supported are float32, bfloat16, float8_e4m3fn, int8"),
        (dict(kv_dtype="int8", generation="v4"), "on v4 kv dtype int8, supported are float32, bfloat16$"),
        (dict(head_dim=20), "head width 20, supported are multiples of 8"),
        (dict(num_heads=12), "12 query heads with kv heads 8"),
        (dict(max_decode_len=9), "queries per row 9, supported are 1, 2"),
        (dict(table_entries=10**6), "page table entries 1000000, supported are at most 131072"),
        (
            dict(num_heads=512, num_kv_heads=512, generation="v4"),
            "512 kv heads of width 128, supported are as many as fit",
        ),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        check_decode(**{**GOOD, **wrong})


def test_blocks_are_longer_where_a_position_is_few_bytes() -> None:
    """With scales of tokens and two heads, not with eight nor with a scale per head."""
    of: dict[str, Any] = dict(head_dim=128, page_size=128, kv_dtype="int8", generation="v5e", table_width=64)
    two, eight, plain = (
        decode_shape(num_heads=4 * heads, num_kv_heads=heads, token_scales=told, **of).block
        for heads, told in ((2, True), (8, True), (2, False))
    )
    assert (two, eight, plain) == (2048, 1024, 1024)
