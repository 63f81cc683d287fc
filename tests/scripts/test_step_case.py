"""The whole decode step that `distaff bench kernels` charges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from distaff.backends.aot import Case, CompileJob, compile_ahead, compile_report
from distaff.backends.base import Program
from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.hlo import parse_module
from distaff.backends.compiler.report import CompileReport, KernelReport, MemoryReport
from distaff.backends.hardware import chip
from distaff.backends.tpu.backend import TpuBackend
from distaff.scripts.kernel_rows import TOPOLOGIES, KernelRow, figures, kernel_rows, row_object
from distaff.scripts.step_case import step, step_bytes

IN_PLACE = {"parameter", "get-tuple-element", "bitcast", "custom-call"}
"""Operations that name a buffer, or, as the kernel does, return the one that they were given."""

STEPS = [row for row in kernel_rows() if row.kernel == "step"]


def makers(text: str, shape: Sequence[int]) -> list[str]:
    """Operations of an optimised program that make an array of these sizes anew."""
    wanted = f"[{','.join(map(str, shape))}]"
    return [
        f"{instruction.opcode} {instruction.name}"
        for instructions in parse_module(text).computations.values()
        for instruction in instructions
        if wanted in instruction.shape and not instruction.shape.startswith("(")
        if instruction.opcode not in IN_PLACE
    ]


def compiled(case: Case, topology: str) -> Program:
    try:
        return compile_ahead(
            case.function, case.abstract_args, topology, donate=case.donate, compiler_options=case.compiler_options
        )
    except CompilerNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.generation, marks=pytest.mark.slow if row.generation == "v6e" else pytest.mark.soak)
        for row in STEPS
    ],
)
def test_the_cache_is_copied_nowhere(row: KernelRow) -> None:
    case = step(**row.arguments)
    (cache,) = case.abstract_args[1]
    text = compiled(case, row.topology).as_text() or ""
    assert "decode_attention" in text and str(list(cache.shape)).replace(" ", "") in text
    assert makers(text, cache.shape) == []


def test_a_copy_would_be_seen() -> None:
    """Of a cache that is not given away, the first write makes another."""
    cache = jax.ShapeDtypeStruct((2, 64, 32, 1024), jnp.bfloat16)
    case = Case(lambda cache: cache.at[0, 3].set(1), (cache,))
    assert makers(compiled(case, TOPOLOGIES["v6e"]).as_text() or "", cache.shape)


@pytest.mark.slow
def test_weights_are_read_where_they_lie_on_tpu7x() -> None:
    """With the backend's options; XLA's own choice of tiles copies a stack of weights before its loop."""
    backend = TpuBackend(generation="tpu7x")
    x, stack = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((64, 4096), (4, 4096, 4096)))

    def layers(x: jax.Array, stack: jax.Array) -> jax.Array:
        return backend.layer_loop(lambda x, weight, _: backend.linear(x, weight, "TD,ED->TE"), x, stack, 4)

    def temporaries(options: Mapping[str, Any]) -> int:
        case = Case(layers, (x, stack), compiler_options=options)
        return compiled(case, TOPOLOGIES["tpu7x"]).memory_analysis().temp_size_in_bytes

    weights = 2 * math.prod(stack.shape)
    assert temporaries(backend.compiler_options) < 0.05 * weights
    assert temporaries({}) > 0.8 * weights


def test_both_steps_have_their_bars() -> None:
    assert [(row.generation, row.shape["batch"]) for row in STEPS] == [("v6e", 16), ("tpu7x", 64)]
    for row in STEPS:
        assert {bar.figure: bar.limit for bar in row.bars}.items() >= {"step_ratio": 1.25, "cache_copies": 0}.items()


def test_bytes_are_those_of_llama_3_1_8b() -> None:
    """8.03e9 parameters, of which the table of tokens is read row by row; 128 KiB for each cached position."""
    weights, cached = step_bytes("llama-3.1-8b", 16, 4096)
    assert weights == pytest.approx(2 * (8.03e9 - 128256 * 4096), rel=0.002)
    assert cached == pytest.approx(16 * 4096 * 32 * 2 * 8 * 128 * 2, rel=0.002)


def test_the_bar_is_that_of_a_greedy_step() -> None:
    """XLA's cheapest branches and the kernel, bound by its bytes here, by the time of weights, keys and values."""
    row = STEPS[0]
    limit = sum(step_bytes("llama-3.1-8b", 16, 4096)) / chip("v6e").device_hbm_bytes_per_second
    kernel = KernelReport(
        name="decode_attention.1", calls=32, bundles=2000, cycles=1, slots={"matmul": 0.5}, spill_stores=0,
        spill_fills=0, vmem_bytes=2**24, loops=(), regions=(), compute_seconds=1e-6, hbm_bytes=1, flops=1,
        hbm_seconds=limit / 4 / 32,
    )  # fmt: skip
    cycles = limit * chip("v6e").clock_hertz
    report = CompileReport(
        "v6e:2x2", "libtpu 1", 2.5, 1, MemoryReport(arguments=1, outputs=1, temporaries=0), 1, 1, round(2 * cycles),
        least_cycles=round(0.9 * cycles), kernels=(kernel,),
    )  # fmt: skip
    found = figures(row, report)
    assert found["step_ratio"] == pytest.approx(1.15, rel=1e-3) and found["sampled_ratio"] == pytest.approx(
        2.25, rel=1e-3
    )
    assert row_object(row, found)["met"] is True
    slower = figures(row, replace(report, least_cycles=round(1.1 * cycles)))
    assert row_object(row, slower)["missed"] == ["step_ratio"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("topology", "layout", "devices", "batch", "context", "most"),
    [
        ("v6e:2x2", "replica", 1, 16, 6144, 0.62),
        ("v5e:2x2", "tensor=4", 4, 32, 4096, 0.62),
    ],
)
def test_a_rounded_step_costs_less(
    topology: str, layout: str, devices: int, batch: int, context: int, most: float
) -> None:
    """Of Llama-3.1-8B, int8 weights, activations and cache against bf16: fusions and the longer of computing and moving
    bytes of each kernel."""
    generation = topology.split(":")[0]
    shape = {"model": "llama-3.1-8b", "layout": layout, "devices": devices, "batch": batch, "context": context}

    def seconds(**rounded: str) -> float:
        job = CompileJob(
            "distaff.scripts.step_case:layout_step", {"generation": generation, **shape, **rounded}, topology
        )
        try:
            report = compile_report(job, timeout=1200, kernels=".*(attention|rounded).*")
        except CompilerNotFoundError as error:
            pytest.skip(str(error))
        kernels = sum(kernel.seconds * kernel.calls for kernel in report.kernels)
        return (report.least_cycles or 0) / chip(generation).clock_hertz + kernels

    plain, rounded = seconds(), seconds(quantize="int8", kv_dtype="int8")
    print(f"{topology} {layout}: {1e3 * plain:.2f} ms in bf16, {1e3 * rounded:.2f} in int8, {rounded / plain:.3f}")
    assert rounded <= most * plain
