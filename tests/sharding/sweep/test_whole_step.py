"""A step in two programs, and what stands for both of them."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.aot import CompileJob, compile_report
from distaff.backends.compiler.report import Collective, CompileReport, MemoryReport
from distaff.models.row_state import RowState
from distaff.models.sampling import draw, take_best
from distaff.scripts.sweep_verify import BUILDERS
from distaff.sharding.sweep.whole_step import whole_step

STEP = CompileReport(
    "v5e:2x2", "libtpu 0", 1.0, 4, MemoryReport(1000, 20, 300, 10), 50, 60, 70, 65,
    collectives=(Collective("all-reduce", ((0, 1, 2, 3),), 8, 2),),
)  # fmt: skip
DRAWING = CompileReport("v5e:2x2", "libtpu 0", 2.0, 1, MemoryReport(150, 4, 40), 5, 6, 7, 1)


def test_memory_is_the_larger_and_work_the_sum() -> None:
    found = whole_step(STEP, DRAWING, logits=100)
    assert found.memory == STEP.memory  # 140 bytes while tokens are drawn, 300 before
    assert whole_step(STEP, DRAWING, logits=500).memory.temporaries == 540
    assert (found.compile_seconds, found.flops, found.hbm_bytes) == (3.0, 55, 66)
    assert (found.estimated_cycles, found.least_cycles) == (77, 65)  # greedy rows draw nothing
    assert found.collectives == STEP.collectives


def test_compilers_without_cycles_have_none_of_both() -> None:
    assert whole_step(replace(STEP, estimated_cycles=None), DRAWING, logits=1).estimated_cycles is None


def test_the_most_likely_tokens_are_what_greedy_rows_draw() -> None:
    """So the first program is the step of such rows."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 300)), jnp.float32)
    logits = logits.at[1, 7].set(9).at[1, 290].set(9)  # of equals the first
    state = jax.tree.map(jnp.asarray, RowState.empty(4, 16, 300))
    drawn = draw(logits, state, jnp.arange(4), jnp.full(4, 3))
    best = take_best(logits)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), drawn, best))
    assert best[0].tolist() == np.argmax(logits, axis=1).tolist() and best[0][1] == 7


@pytest.mark.soak
@pytest.mark.parametrize("rows", [1, 8, 32])
def test_two_programs_are_what_one_is(rows: int) -> None:
    """The same arguments and the same sent, FLOPs and greedy cycles within 1 %, the peak within 0.5 %."""
    both = {"chip": "v5e", "rows": rows, "context": 2304}
    of_layout = {"model": "llama-3.1-8b", "preset": "tensor", "mesh": {"tensor": 16}, "queries": 1,
                 "dtype": "bfloat16", "kv_dtype": "bfloat16"}  # fmt: skip
    jobs = (
        CompileJob(BUILDERS.step, {**both, **of_layout}, "v5e:4x4"),
        CompileJob(BUILDERS.drawing, {**both, "vocab_size": 128256}, "v5e:4x4"),
        CompileJob(f"{Path(__file__).parent}/builders.py:in_one_program", {"rows": rows, "context": 2304}, "v5e:4x4"),
    )
    step, drawing, one = (compile_report(job, kernels=".*(attention|rounded).*") for job in jobs)
    two = whole_step(step, drawing, logits=4 * rows * 128256)
    sent = [sorted((e.op, e.replica_groups, e.num_bytes, e.count) for e in each.collectives) for each in (one, two)]
    assert sent[0] == sent[1] and not drawing.collectives
    assert (two.memory.arguments, two.memory.outputs) == (one.memory.arguments, one.memory.outputs)
    assert one.least_cycles is not None and two.flops == one.flops
    assert two.least_cycles == pytest.approx(one.least_cycles, rel=0.01)
    peaks = [each.memory.arguments + each.memory.temporaries for each in (one, two)]
    print(f"{rows} rows: temporaries {two.memory.temporaries / one.memory.temporaries - 1:+.1%}")
    assert peaks[1] == pytest.approx(peaks[0], rel=0.005)
