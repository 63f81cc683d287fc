"""The operations of a step's graph, as a list that people can read: it changes where somebody means to change it."""

import difflib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from distaff.backends.select import select_backend
from distaff.backends.torch.program import TorchProgram
from distaff.serving.plan import Bucket

from ...golden.harness import GOLDEN, Golden
from .test_engine import engine_of

HERE = Path(__file__).parent
BUCKETS = {"decode": Bucket(4, 4, "decode"), "mixed": Bucket(32, 4, "mixed")}


def operations(module: Any, indent: str = "") -> Iterator[str]:
    """What each graph calls, and how often; then the same of the modules in it that hold graphs, the layers' first."""
    graph = getattr(module, "graph", None)
    if graph is not None:
        calls = Counter(name_of(node, module) for node in graph.nodes if node.op.startswith("call"))
        yield from (f"{indent}{count:4} {name}" for name, count in sorted(calls.items()))
    for name, child in module.named_children():
        lines = list(operations(child, indent + "    "))
        if lines:
            yield f"{indent}{name}:"
            yield from lines


def name_of(node: Any, module: Any) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(node.target)).__name__
    return node.target if isinstance(node.target, str) else node.target.__name__


@pytest.mark.parametrize("kind", BUCKETS)
def test_a_step_calls_what_is_listed(kind: str, tmp_path: Path) -> None:
    backend = select_backend("torch:cpu")
    with engine_of(Golden(GOLDEN / "llama31"), backend) as engine:
        program: Any = engine._device._program(BUCKETS[kind])  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(program, TorchProgram)
    found = [*operations(program.graph)]
    file = HERE / "operations" / f"{kind}.txt"
    wanted = file.read_text().splitlines() if file.exists() else []
    new = tmp_path / file.name
    new.write_text("\n".join(found) + "\n")
    difference = "\n".join(difflib.unified_diff(wanted, found, "listed", "found", lineterm=""))
    assert found == wanted, (
        f"{difference}\nIf that is meant, {new} becomes {file}; it was made by JAX {jax.__version__}"
    )
