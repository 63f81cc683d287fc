"""`distaff bench kernels` with a compiler whose answers are known."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.aot import Case
from distaff.backends.compiler.errors import CompileError, OutOfVmemError
from distaff.backends.compiler.report import CompileReport, KernelReport, LoopReport, MemoryReport
from distaff.scripts import kernel_tuner
from distaff.scripts.kernel_rows import OURS, PEERS, TOPOLOGIES, KernelRow, figures, ideal_cycles, kernel_rows
from distaff.scripts.kernel_timing import time_case
from distaff.scripts.report_cache import ReportCache, content_key

DECODE = KernelRow(
    "decode",
    "v6e",
    {"batch": 64, "context": 4096, "page": 16, "kv_dtype": "bfloat16", "queries": 1, "num_q_heads": 32,
     "num_kv_heads": 8, "head_dim": 128},
)  # fmt: skip
PEER = KernelRow("jax paged_attention", "v6e", {"batch": 64, "context": 4096, "page": 16, "kv_dtype": "bfloat16"})


def report(compute_us: float = 300.0, hbm_us: float = 600.0, **changes: Any) -> CompileReport:
    slots = {"matmul": 0.5, "spill": 0.0}
    loop = LoopReport(0, 10, 0, 10, 4.0, False, 1e6 * compute_us, slots)
    kernel = KernelReport(
        name="decode.1", calls=1, bundles=2000, cycles=compute_us * 1750, slots=slots, spill_stores=3, spill_fills=3,
        vmem_bytes=2**24, loops=(loop,), regions=(), compute_seconds=compute_us / 1e6, hbm_bytes=10**9, flops=2**40,
        hbm_seconds=hbm_us / 1e6,
    )  # fmt: skip
    kernel = replace(kernel, **changes)
    memory = MemoryReport(arguments=1, outputs=1, temporaries=0)
    return CompileReport("v6e:2x2", "libtpu 1", 2.5, 1, memory, 1, 1, 17500, kernels=(kernel,))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[KernelRow]:
    """Answers every row, and remembers which it was asked for; peers do not fit."""
    asked: list[KernelRow] = []

    def answers(rows: Sequence[KernelRow]) -> Iterator[CompileReport | CompileError]:
        for row in rows:
            asked.append(row)
            yield report() if row.ours else OutOfVmemError("v6e:2x2", "72 of 64 MiB")

    monkeypatch.setattr("distaff.scripts.bench_kernels.compile_rows", answers)
    monkeypatch.setenv("DISTAFF_CACHE", str(tmp_path))
    return asked


def rows_of(output: str) -> list[dict[str, Any]]:
    return json.loads(output.splitlines()[-1])["rows"]


def test_rows_hold_figures_bars_and_whether_they_are_met(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], compiled: list[KernelRow]
) -> None:
    command = ("bench", "kernels", "--generation", "v6e", "--shape", "B64 ctx4096 page16 bf16", "--json")
    assert distaff(*command) == 0
    rows = rows_of(capsys.readouterr().out)
    ours, *peers = rows
    assert (ours["kernel"], ours["generation"], ours["shape"]) == ("decode", "v6e", "B64 ctx4096 page16 bf16")
    assert ours["arguments"] == DECODE.shape
    assert ours["figures"]["ratio"] == pytest.approx(0.5) and ours["figures"]["mxu_busy"] == pytest.approx(0.5)
    assert ours["figures"]["xla_us"] == pytest.approx(10.0)
    assert ours["figures"]["vmem_share"] == pytest.approx(1 / 8)
    assert ours["bar"] == {"ratio": 0.6, "bundles": 5000, "compile_s": 10, "vmem_share": 1}
    assert ours["met"] is True and ours["missed"] == [] and ours["error"] is None
    assert {row["kernel"] for row in peers} == {"jax paged_attention", "jax ragged_paged_attention"}
    assert all(row["bar"] is None and row["met"] is None and "72 of 64 MiB" in row["error"] for row in peers)


def test_what_was_compiled_is_kept_and_what_failed_is_tried_again(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], compiled: list[KernelRow]
) -> None:
    command = ("bench", "kernels", "--generation", "v6e", "--shape", "page16 bf16 ctx4096", "--json")
    assert distaff(*command) == 0
    first, out = list(compiled), capsys.readouterr().out
    compiled.clear()
    assert distaff(*command) == 0
    assert capsys.readouterr().out == out
    assert compiled == [row for row in first if not row.ours]
    compiled.clear()
    assert distaff(*command, "--fresh", "--no-peers") == 0
    assert compiled == [row for row in first if row.ours]


def test_a_table_for_people_names_what_is_missed(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], compiled: list[KernelRow], tmp_path: Path
) -> None:
    ReportCache(tmp_path / "kernels").put(DECODE, report(compute_us=420.0))
    assert distaff("bench", "kernels", "--generation", "v6e", "--shape", "page16 bf16 ctx4096") == 0
    out = capsys.readouterr().out
    assert "0.70 > 0.60" in out and "missed" in out and "72 of 64 MiB" in out
    assert "0 of 1 rows with a bar keep it" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--generation", "v3"), "--generation is 'v3', expected one of v4, v5e, v5p, v6e, tpu7x"),
        (("--kernel", "nothing"), "no row is left by --kernel, --generation and --shape"),
    ],
)
def test_wrong_filters_are_refused(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert distaff("bench", "kernels", *arguments) == 2
    assert message in capsys.readouterr().err


def test_accepting_writes_budgets(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], compiled: list[KernelRow], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    written: dict[str, Any] = {}

    def accept(generation: str, libtpu: str, cycles: Any, reason: str | None) -> int:
        written[generation] = (cycles, reason)
        return len(cycles)

    monkeypatch.setattr("distaff.backends.kernel_budgets.accept", accept)
    pytest.importorskip("libtpu")
    command = ("bench", "kernels", "--kernel", "decode", "--shape", "page16 bf16 ctx4096", "--accept")
    assert distaff(*command, "--reason", "sinks") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "5 budgets changed"
    expected = {("decode", "B64 ctx4096 page16 bf16"): pytest.approx(525_000)}
    assert written == dict.fromkeys(TOPOLOGIES, (expected, "sinks"))


def test_every_shape_of_a_bar_has_rows() -> None:
    """Rows cover each bar on each of its generations, at every length that it names."""
    from distaff.backends.kernel_bars import kernel_bars

    rows = list(kernel_rows())
    assert len({content_key(row) for row in rows}) == len(rows)
    for bar in kernel_bars():
        for generation in bar.generations:
            shapes = [row.shape for row in rows if row.generation == generation and bar in row.bars]
            for name in ("context", "length"):
                wanted = set(bar.shape.get(name, ()))
                assert wanted <= {shape.get(name) for shape in shapes}, bar
    assert {row.kernel for row in rows} == {*OURS, *PEERS}
    assert {(row.kernel, row.generation) for row in rows} >= {("decode", generation) for generation in TOPOLOGIES}


def test_the_key_follows_the_arguments() -> None:
    other = KernelRow("decode", "v6e", {**DECODE.shape, "page": 32})
    assert content_key(DECODE) == content_key(KernelRow("decode", "v6e", dict(DECODE.shape)))
    assert len({content_key(row) for row in (DECODE, other, replace(DECODE, generation="v5e"), PEER)}) == 4


def test_a_broken_file_of_the_cache_is_no_report(tmp_path: Path) -> None:
    cache = ReportCache(tmp_path)
    cache.put(DECODE, report())
    assert cache.get(DECODE) == report()
    next(tmp_path.glob("*.json")).write_text('{"topology": 1')
    assert cache.get(DECODE) is None


def test_ideal_cycles_are_those_of_the_matrix_units() -> None:
    """A 1024 x 1024 tile of width 128 keeps the two 256 x 256 units of a v6e busy for 2048 cycles."""
    tile = 4 * 1024 * 1024 * 128
    assert ideal_cycles("v6e", tile, 128) == pytest.approx(2048, rel=0.01)
    assert ideal_cycles("v6e", tile, 256) == pytest.approx(1024, rel=0.01)
    assert ideal_cycles("v5e", tile, 128) == pytest.approx(4096, rel=0.01)
    row = KernelRow("flash", "v6e", {"length": 1024, "head_dim": 128})
    kernel = report().kernels[0]
    tiled = replace(report(), kernels=(replace(kernel, cycles=4096.0, flops=tile),))
    assert figures(row, tiled)["mxu_ratio"] == pytest.approx(2.0, rel=0.01)


def test_timing_feeds_donated_arguments_back() -> None:
    """Lengths are given as they are, what is abstract is filled, and the cache goes round."""
    lens = np.array([3, 4], np.int32)

    def function(x: jax.Array, cache: jax.Array, lens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x * lens.sum(), cache + lens.sum()

    abstract = (jax.ShapeDtypeStruct((8,), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32), lens)
    assert 0 < time_case(Case(function, abstract, donate=(1,)), calls=2, rounds=3) < 10


TABLE = """\
# Sizes.
decode:
  v5e: {block: 512, vmem_mib: 100}
  # the largest that fits
  v6e: {block: 1024, vmem_mib: 100}
prefill:
  v6e: {queries: 512, row_sum: matrix}
"""


def test_the_tuner_writes_the_best_candidate_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two shapes one likes 512 and the other 1024; 2048 does not compile for one of them."""
    (table := tmp_path / "sizes.yaml").write_text(TABLE)
    inf = float("inf")
    times = {256: [90.0, 60.0], 512: [40.0, 24.0], 1024: [44.0, 20.0], 2048: [10.0, inf]}
    monkeypatch.setattr(kernel_tuner, "_times", lambda shapes, blocks: times[blocks["block"]])
    monkeypatch.setattr(kernel_tuner, "CANDIDATES", {"decode": {"block": (256, 512, 1024, 2048)}})
    other = KernelRow("decode", "v5e", DECODE.shape)
    lines = list(kernel_tuner.tune_rows([replace(DECODE, generation="v5e"), other, PEER], table))
    assert len(lines) == 1 and lines[0].startswith('decode v5e: {"block": 1024, "vmem_mib": 100} takes')
    assert table.read_text() == TABLE.replace("block: 512", "block: 1024")


def test_times_are_compared_shape_by_shape() -> None:
    inf = float("inf")
    assert kernel_tuner.relative([[40.0, 20.0], [80.0, 10.0], [inf, 10.0]]) == [1.5, 1.5, inf]


@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_the_table_can_be_written(generation: str, tmp_path: Path) -> None:
    text = kernel_tuner.TABLE.read_text()
    (table := tmp_path / "sizes.yaml").write_text(text)
    for kernel in kernel_tuner.CANDIDATES:
        blocks = kernel_tuner.entry(table, kernel, generation)
        assert set(kernel_tuner.CANDIDATES[kernel]) <= set(blocks)
        kernel_tuner.write_entry(table, kernel, generation, {**blocks, next(iter(blocks)): 12345})
        assert kernel_tuner.entry(table, kernel, generation) == {**blocks, next(iter(blocks)): 12345}
        kernel_tuner.write_entry(table, kernel, generation, blocks)
    assert table.read_text() == text
