"""How long the TPU compiler takes for a step of a 70B model.

XLA keeps 1.7 cores busy with it (alone on two cores: 18 s and 31 CPU seconds for a decode step, 24 s and 41 for one of
512 tokens). So the limit of 30 s is one of CPU seconds here: they are the same beside other work.
"""

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import pytest

from distaff.backends.compiler.errors import CompilerNotFoundError
from distaff.backends.compiler.libtpu import print_only
from distaff.backends.compiler.lowering import compile_lowered, lower, make_mesh
from distaff.backends.tpu.backend import TpuBackend
from distaff.sharding.parsing import parse_layout
from distaff.sharding.step import ShardedModel
from distaff.sharding.step_case import step_case

from .shipped import shipped

LIMIT, BUSY_CORES = 30, 1.7


def start_silently() -> None:
    os.environ |= print_only("none")
    jax.config.update("jax_enable_compilation_cache", False)


def compile_seconds(text: str, topology: str, rows: int, queries: int) -> float:
    """CPU seconds of one compile, from tracing to the program."""
    model = ShardedModel(
        shipped("llama-3.1-70b"),
        parse_layout(text, num_devices=128),
        TpuBackend(generation=topology.split(":")[0]),
        jnp.dtype(jnp.bfloat16),
    )
    devices = make_mesh(topology, dict(model.layout.mesh))
    before = resource.getrusage(resource.RUSAGE_SELF)
    case = step_case(model, rows=rows, queries=queries, context=1024, page=128)
    lowered = lower(case.function, case.abstract_args, devices, in_specs=case.in_specs, donate=case.donate)
    compile_lowered(lowered, topology, case.compiler_options)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_a_fresh_process(text: str, topology: str, rows: int, queries: int) -> float:
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), start_silently) as pool:
            seconds = pool.submit(compile_seconds, text, topology, rows, queries).result()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    print(f"llama-3.1-70b, {text} on {topology}, {rows} x {queries} tokens: {seconds:.1f} CPU seconds")
    return seconds


@pytest.mark.soak
@pytest.mark.parametrize(("rows", "queries"), [(8, 1), (2, 256)])
def test_a_step_of_70b_compiles_within_the_limit(rows: int, queries: int) -> None:
    """And on eight times as many chips in no more than 1.2 times that."""
    small = in_a_fresh_process("tensor=16", "v5e:4x4", rows, queries)
    large = in_a_fresh_process("data=8,tensor=16", "v5e:8x16", rows, queries)
    assert small < LIMIT * BUSY_CORES
    assert large < 1.2 * small


@pytest.mark.soak
def test_blocks_of_two_axes_compile_within_the_limit() -> None:
    small = in_a_fresh_process("tensor-2d:tensor=4,tensor2=4", "v5e:4x4", 8, 1)
    large = in_a_fresh_process("tensor-2d:tensor=16,tensor2=8", "v5e:8x16", 8, 1)
    assert small < LIMIT * BUSY_CORES
    assert large < 1.2 * small
