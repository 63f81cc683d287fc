"""A step's report from those of its two programs.

Most of what a compiler does for a decode step is the drawing of tokens, which is the same under every layout: all
devices draw from the same logits, and send nothing. So a step is compiled without it, taking the most likely tokens,
and drawing apart, once for each number of rows.
"""

from dataclasses import replace

from ...backends.compiler.report import CompileReport


def whole_step(step: CompileReport, drawing: CompileReport, *, logits: int) -> CompileReport:
    """What stands for the program of both: of memory the larger, of work the sum.

    `least_cycles` are those of the step, whose rows are greedy; `estimated_cycles` those of rows that draw. Arguments
    of drawing are in the step, but for the logits, which are held while tokens are drawn.

    Args:
        step: that takes the most likely tokens.
        drawing: in its rows, on one device.
        logits: bytes of them.
    """
    temporaries = max(step.memory.temporaries, logits + drawing.memory.temporaries)
    both = (step.estimated_cycles, drawing.estimated_cycles)
    return replace(
        step,
        compile_seconds=step.compile_seconds + drawing.compile_seconds,
        memory=replace(step.memory, temporaries=temporaries),
        flops=step.flops + drawing.flops,
        hbm_bytes=step.hbm_bytes + drawing.hbm_bytes,
        estimated_cycles=None if None in both else sum(each or 0 for each in both),
        collectives=step.collectives + drawing.collectives,
        unknown_loops=step.unknown_loops + drawing.unknown_loops,
    )
