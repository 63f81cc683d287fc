"""What `distaff bench kernels` compiles, and what it makes of the compiler's answer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..backends.compiler.report import CompileReport, KernelReport
from ..backends.hardware import chip
from ..backends.kernel_bars import Bar, Shape, kernel_bars

TOPOLOGIES: Mapping[str, str] = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
"""The smallest topology of each generation; kernels are compiled for its first device."""

BARRED = ("v5e", "v6e", "tpu7x")
"""Generations with bars of their own."""

OURS: Mapping[str, str] = {
    **{name: f"distaff.backends.tpu.cases:{name}" for name in ("decode", "prefill", "flash", "grouped", "norm")},
    "step": "distaff.scripts.step_case:step",
}
PEERS: Mapping[str, str] = {
    f"jax {name}": f"distaff.backends.tpu.peers:{name}"
    for name in ("paged_attention", "ragged_paged_attention", "flash_attention", "splash_attention")
}

_STEP_BATCHES = {"v6e": 16, "tpu7x": 64}
_GROUPED_SHAPES = ((512, 128, 2048, 768), (128, 8, 4096, 14336), (4096, 8, 4096, 14336))
"""Rows, experts, inputs and outputs: decode of many small experts and of a few large ones, and prefill."""
_MODEL = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
_SHORT = {
    "batch": "B",
    "context": "ctx",
    "longest": "of",
    "window": "window",
    "length": "T",
    "page": "page",
    "queries": "q",
    "num_q_heads": "N",
    "num_kv_heads": "K",
    "head_dim": "H",
    "block_q": "bq",
    "block_kv": "bkv",
    "block": "block",
    "num_rows": "R",
    "num_experts": "E",
    "num_inputs": "I",
    "num_outputs": "O",
    "width": "D",
}
_VALUES = {"bfloat16": "bf16", "float8_e4m3fn": "fp8", "float32": "fp32", "token": "token-scales"}


@dataclass(frozen=True)
class KernelRow:
    """One kernel at one shape on one generation.

    Args:
        kernel: a name in OURS or PEERS.
        generation: a name in TOPOLOGIES.
        shape: what its builder takes; also what bars and budgets are looked up by.
    """

    kernel: str
    generation: str
    shape: Shape = field(hash=False)

    @property
    def ours(self) -> bool:
        return self.kernel in OURS

    @property
    def builder(self) -> str:
        """Where the case is built: "module:function"."""
        return OURS[self.kernel] if self.ours else PEERS[self.kernel]

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the builder. Ours pick their block sizes by generation."""
        return {**self.shape, "generation": self.generation} if self.ours else dict(self.shape)

    @property
    def topology(self) -> str:
        return TOPOLOGIES[self.generation]

    @cached_property
    def shape_text(self) -> str:
        """The shape in a few characters, such as "B64 ctx4096 page16 fp8"."""
        words = []
        for name, value in self.shape.items():
            if _MODEL.get(name) != value and (name, value) != ("queries", 1):
                words.append(f"{_SHORT[name]}{value}" if name in _SHORT else _VALUES.get(str(value), str(value)))
        return " ".join(words)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What it must reach; nothing is asked of peers."""
        if not self.ours:
            return ()
        return tuple(bar for bar in kernel_bars() if bar.applies(self.kernel, self.generation, self.shape))

    def matches(self, kernel: str | None, generation: str | None, shape: str | None) -> bool:
        """Whether filters let it through: a part of its kernel's name, its generation, and words of its shape."""
        words = self.shape_text.split()
        return (
            (kernel is None or kernel in self.kernel)
            and (generation is None or generation == self.generation)
            and (shape is None or all(word in words for word in shape.split()))
        )


def kernel_rows() -> Iterator[KernelRow]:
    """Every row of the report: ours, and after each kind of ours the peers that do the same."""
    for generation in TOPOLOGIES:
        barred = generation in BARRED
        for context, page, kv_dtype, more in _decode_shapes(barred):
            shape = {"batch": 64, "context": context, **more, "page": page, "kv_dtype": kv_dtype}
            yield KernelRow("decode", generation, {**shape, "queries": 1, **_MODEL})
        if barred:
            for context, page, kv_dtype in ((4096, 16, "bfloat16"), (4096, 128, "bfloat16")):
                shape = {"batch": 64, "context": context, "page": page, "kv_dtype": kv_dtype}
                yield KernelRow("jax paged_attention", generation, shape)
                yield KernelRow("jax ragged_paged_attention", generation, shape)
            eight_bit = {"batch": 64, "context": 4096, "page": 128, "kv_dtype": "float8_e4m3fn"}
            yield KernelRow("jax ragged_paged_attention", generation, eight_bit)
        for length in (4096, 8192) if barred else (4096,):
            shape = {"length": length, **_MODEL, "kv_dtype": "bfloat16"}
            yield KernelRow("prefill", generation, {**shape, "page": 128})
            yield KernelRow("flash", generation, shape)
            if barred:
                yield KernelRow("jax flash_attention", generation, {"length": length, "block": 1024})
                yield KernelRow(
                    "jax splash_attention", generation, {"length": length, "block_q": 1024, "block_kv": 1024}
                )
        for num_rows, num_experts, num_inputs, num_outputs in _GROUPED_SHAPES:
            shape = {"num_rows": num_rows, "num_experts": num_experts}
            matrix = {"num_inputs": num_inputs, "num_outputs": num_outputs, "dtype": "bfloat16"}
            yield KernelRow("grouped", generation, {**shape, **matrix})
        for num_rows in (8192, 512):
            yield KernelRow("norm", generation, {"num_rows": num_rows, "width": 4096, "dtype": "bfloat16"})
        if generation in _STEP_BATCHES:
            shape = {"model": "llama-3.1-8b", "batch": _STEP_BATCHES[generation], "context": 4096, "page": 16}
            yield KernelRow("step", generation, shape)


def _decode_shapes(barred: bool) -> Iterator[tuple[int, int, str, Shape]]:
    """Context, page size, dtype and what else there is: all that bars are about, short rows, windows and scales for
    each token; or a sample."""
    if not barred:
        yield from ((4096, page, "bfloat16", {}) for page in (16, 128))
        return
    for kv_dtype in ("bfloat16", "float8_e4m3fn", "int8"):
        for context in (1024, 4096, 8192):
            yield from ((context, page, kv_dtype, {}) for page in (16, 128))
        yield from ((4096, page, kv_dtype, {}) for page in (32, 64, 256))
    yield from ((128, page, "bfloat16", {"longest": 8192}) for page in (16, 128))
    yield 8192, 16, "bfloat16", {"window": 128}
    yield from ((4096, 128, kv_dtype, {"scales": "token"}) for kv_dtype in ("float8_e4m3fn", "int8"))


def figures(row: KernelRow, report: CompileReport) -> dict[str, float | None]:
    """The numbers of a row, all static.

    `compute_us` and `hbm_us` are kernels alone, `xla_us` what XLA expects of its own operations; `ratio` is the first
    by the second, `mxu_ratio` cycles by those that the needed products take where a matrix unit is never idle.
    """
    kernels = report.kernels
    calls = [(kernel, kernel.calls) for kernel in kernels]
    compute = sum(kernel.compute_seconds * count for kernel, count in calls)
    hbm = sum((kernel.hbm_seconds or 0.0) * count for kernel, count in calls)
    cycles = sum(kernel.cycles * count for kernel, count in calls)
    known = chip(row.generation)
    step = step_figures(row, report) if row.kernel == "step" else {}
    vmem = max((kernel.vmem_bytes or 0 for kernel in kernels), default=0)
    return {
        "compute_us": compute * 1e6,
        "hbm_us": hbm * 1e6,
        "ratio": compute / hbm if hbm else None,
        "mxu_ratio": _mxu_ratio(row, kernels, cycles),
        "cycles": cycles,
        "mxu_busy": sum(kernel.mxu_busy * kernel.cycles * count for kernel, count in calls) / cycles
        if cycles
        else None,
        "bundles": max((kernel.bundles for kernel in kernels), default=0),
        "spills": sum(kernel.spill_stores * count for kernel, count in calls),
        "hot_loop_spills": _hot_loop_spills(kernels),
        "vmem_bytes": vmem,
        "vmem_share": vmem / known.vmem_bytes if known.vmem_bytes else None,
        "compile_s": report.compile_seconds,
        "xla_us": (report.estimated_cycles or 0) / known.clock_hertz * 1e6,
        **step,
    }


def step_figures(row: KernelRow, report: CompileReport) -> dict[str, float]:
    """A decode step as a whole, beside the time to read its weights and its keys and values once.

    `step_ratio` is of a step in which every row is greedy, as bars ask, and `cycles` are all that it takes;
    `sampled_ratio` is of one that samples in every way there is (the costliest branch of each conditional).
    `cache_copies` counts operations that XLA expects to move at least half of the cache.
    """
    from .step_case import step_bytes

    known = chip(row.generation)
    weights, cached = step_bytes(str(row.shape["model"]), int(row.shape["batch"]), int(row.shape["context"]))
    limit = (weights + cached) / known.device_hbm_bytes_per_second
    kernels = sum(kernel.seconds * kernel.calls for kernel in report.kernels)
    copying = cached / 2 / known.device_hbm_bytes_per_second * known.clock_hertz
    greedy = (report.least_cycles or 0) / known.clock_hertz + kernels
    moved = [cost for cost in report.operations if "copy" in cost.name and cost.cycles >= copying]
    return {
        "cycles": greedy * known.clock_hertz,
        "limit_us": limit * 1e6,
        "greedy_xla_us": (report.least_cycles or 0) / known.clock_hertz * 1e6,
        "step_ratio": greedy / limit,
        "sampled_ratio": ((report.estimated_cycles or 0) / known.clock_hertz + kernels) / limit,
        "cache_copies": len(moved) + (report.memory.temporaries >= cached),
        "temporary_bytes": report.memory.temporaries,
    }


def ideal_cycles(generation: str, flops: float, head_dim: int) -> float:
    """Cycles of attention's two products on matrix units that are never idle.

    A head narrower than the unit, as depth of the first product and width of the second, leaves the rest unused.
    """
    known = chip(generation)
    edge = known.matrix_unit_edge or 128
    used = head_dim / (-(-head_dim // edge) * edge)
    return flops / (known.device_flops() / known.clock_hertz * used)


def _mxu_ratio(row: KernelRow, kernels: tuple[KernelReport, ...], cycles: float) -> float | None:
    flops = sum((kernel.flops or 0) * kernel.calls for kernel in kernels)
    if row.kernel == "grouped":
        known = chip(row.generation)
        return cycles / (flops / known.device_flops() * known.clock_hertz)
    if "length" not in row.shape or not flops:
        return None
    return cycles / ideal_cycles(row.generation, flops, int(row.shape.get("head_dim", _MODEL["head_dim"])))


def _hot_loop_spills(kernels: tuple[KernelReport, ...]) -> float | None:
    """Fraction of the store slots of the costliest loop that store registers for want of registers."""
    loops = [kernel.hot_loop for kernel in kernels]
    return max((loop.slots["spill"] for loop in loops if loop is not None), default=None)


def row_object(row: KernelRow, found: Mapping[str, float | None] | None, error: str | None = None) -> dict[str, Any]:
    """A row for JSON. `bar` is what it must reach, figure by figure; `met` is null where nothing is asked."""
    bars = row.bars
    missed = [bar for bar in bars if found is None or not bar.met(found)]
    return {
        "kernel": row.kernel,
        "generation": row.generation,
        "shape": row.shape_text,
        "arguments": dict(row.shape),
        "figures": dict(found or {}),
        "bar": {bar.figure: bar.limit for bar in bars} or None,
        "met": not missed if bars else None,
        "missed": [bar.figure for bar in missed],
        "error": error,
    }
