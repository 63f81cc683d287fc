"""What the adapter costs beside the graphs it runs, and what building them costs: SmolLM2 on torch:cpu.

python -m tests.backends.torch.step_cost [DTYPE] [ROWS]      prints one JSON object; alone on the machine
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from distaff.backends.torch.program import TorchProgram
from distaff.serving import LLM, Request, SamplingParams

_NUM_TOKENS = 32
_MOST_BUILDING, _MOST_OVERHEAD = 20.0, 1.0
"""Seconds for all graphs of an engine; milliseconds of each step."""


def measure(dtype: str, rows: int) -> dict[str, Any]:
    """Decode steps of `rows` rows, one in a call: all of the call, and its graph."""
    llm = LLM(
        "smollm2-135m-instruct", backend="torch:cpu", dtype=dtype, max_batch=rows, context=512, max_decode_steps=1
    )
    start = time.perf_counter()
    llm.engine.warm_up()
    building = time.perf_counter() - start
    graphs = llm.engine.metrics.compiles
    whole, inside = list[float](), list[float]()
    call = TorchProgram.__call__

    def timed(run: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            start = time.perf_counter()
            result = run(*args)
            times.append(time.perf_counter() - start)
            return result

        return watched

    for program in llm.engine._device._programs.values():  # pyright: ignore[reportAttributeAccessIssue]
        program._run = timed(program._run, inside)
    TorchProgram.__call__ = lambda self, *args: timed(call, whole)(self, *args)
    try:
        params = SamplingParams(max_tokens=_NUM_TOKENS, temperature=0, ignore_eos=True)
        llm.engine.generate([Request(tuple(range(100 + row, 228 + row)), params) for row in range(rows)])
    finally:
        TorchProgram.__call__ = call
        llm.close()
    steps = list(zip(whole, inside, strict=True))[-_NUM_TOKENS // 2 :]
    step, graph = (1e3 * statistics.median(times) for times in zip(*steps, strict=True))
    overhead = 1e3 * statistics.median(all_of - of_graph for all_of, of_graph in steps)
    return {
        "dtype": dtype,
        "rows": rows,
        "graphs": graphs,
        "building_s": round(building, 2),
        "step_ms": round(step, 3),
        "graph_ms": round(graph, 3),
        "overhead_ms": round(overhead, 3),
        "holds": building < _MOST_BUILDING and overhead < _MOST_OVERHEAD,
    }


if __name__ == "__main__":
    dtype, rows = (sys.argv[1:] + ["bfloat16", "8"][len(sys.argv) - 1 :])[:2]
    print(json.dumps(measure(dtype, int(rows))))
