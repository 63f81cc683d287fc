"""What is compiled of a row, and that nothing which goes wrong there ends a sweep."""

from pathlib import Path

import pytest

from distaff.backends.compile_job import CompileJob
from distaff.sharding.collectives import StepShape
from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.compile_cache import CompileCache
from distaff.sharding.sweep.plan import Placed, score
from distaff.sharding.sweep.rows import rows_of
from distaff.sharding.sweep.slices import parse_slice
from distaff.sharding.sweep.verify import Builders, Task, checks_of, run_tasks

from .asked import V5E, request

BUILDERS = Builders("a:step", "a:drawing")


@pytest.mark.slow
def test_a_crash_and_a_time_out_are_answers_of_their_rows(tmp_path: Path) -> None:
    """And none of them is kept: another machine, or more time, may have another one."""
    place = Path(__file__).parent / "builders.py"
    jobs = {name: CompileJob(f"{place}:{name}", {}, "v5e:2x2") for name in ("crash", "hang", "refuse")}
    cache = CompileCache(tmp_path)
    answers = run_tasks([Task(job, name) for name, job in jobs.items()], cache, timeout=15)
    found = {name: answer.refused for name, answer in zip(jobs, answers, strict=True)}
    kinds = {name: None if refused is None else refused["kind"] for name, refused in found.items()}
    assert kinds == {"crash": "abort", "hang": "timeout", "refuse": "compiler"}
    assert found["crash"] is not None and "SIGABRT" in found["crash"]["message"]
    assert found["refuse"] is not None and "no such thing" in found["refuse"]["message"]
    assert [cache.get(job) is None for job in jobs.values()] == [True, True, False]


def test_what_is_compiled_is_the_step_of_the_row() -> None:
    asked, layout = request(batches=(8,)), parse_layout("data=2,tensor=2", num_devices=4)
    (row,) = rows_of(score(asked, (Placed.of(asked, layout, V5E),)), [0])
    checks = checks_of(asked, row, layout, V5E, builders=BUILDERS, phases=("decode", "prefill"))
    assert not isinstance(checks, str)
    assert [(each.phase, each.shape) for each in checks] == [
        ("decode", StepShape(4)),  # of each replica
        ("prefill", StepShape(1, 512)),  # no more than a prompt has
    ]
    step, drawing = (task.job for task in checks[0].tasks)
    assert step.topology == "v5e:2x2" and step.arguments["context"] == 576
    assert drawing.arguments == {"chip": "v5e", "rows": 4, "context": 576, "vocab_size": asked.config.vocab_size}


def test_rounded_weights_are_compiled_as_they_are_served() -> None:
    asked = request(batches=(8,), weights=("int8",), activations=("bf16", "int8"), kv=("int8",), phase="decode")
    layout = parse_layout("tensor=4", num_devices=4)
    found: list[dict[str, object]] = []
    for row in rows_of(score(asked, (Placed.of(asked, layout, V5E),)), [0, 1]):
        checks = checks_of(asked, row, layout, V5E, builders=BUILDERS, phases=("decode",))
        assert not isinstance(checks, str)
        arguments = checks[0].step.job.arguments
        found.append({name: arguments[name] for name in ("dtype", "quantize", "kv_dtype")})
    assert found == [
        {"dtype": "bfloat16", "quantize": quantize, "kv_dtype": "int8"} for quantize in ("int8-weight", "int8")
    ]


def test_layouts_with_as_many_rows_share_the_drawing_of_their_tokens() -> None:
    asked = request(batches=(8,), phase="decode")
    layouts = [parse_layout(text, num_devices=4) for text in ("tensor=4", "tensor-2d:tensor=2,tensor2=2", "data=4")]
    rows = rows_of(score(asked, tuple(Placed.of(asked, layout, V5E) for layout in layouts)), range(3))
    tasks: list[tuple[Task, Task]] = []
    for row, layout in zip(rows, layouts, strict=True):
        checks = checks_of(asked, row, layout, V5E, builders=BUILDERS, phases=("decode",))
        assert not isinstance(checks, str)
        tasks.append(checks[0].tasks)
    assert len({step.key for step, _ in tasks}) == 3
    assert [tasks[0][1].key == drawing.key for _, drawing in tasks] == [True, True, False]  # replicas have two rows


@pytest.mark.parametrize(
    ("fields", "on", "says"),
    [
        (
            {"activations": ("int8",)},
            "v5e:2x2",
            "steps have weights with activations of fp32 with fp32, bf16 with bf16",
        ),
        ({"kv": ("int4",)}, "v5e:2x2", "caches are of fp32, bf16, int8, fp8"),
        ({}, "v5e:2x2*2", "several slices"),
        ({}, "mi300x:4", "no compiler for mi300x is installed"),
    ],
)
def test_what_is_not_compiled_is_said(fields: dict[str, object], on: str, says: str) -> None:
    there = parse_slice(on)
    asked, layout = (
        request(batches=(8,), slices=(there,), **fields),
        parse_layout(f"tensor={there.num_devices}", num_devices=there.num_devices),
    )
    (row,) = rows_of(score(asked, (Placed.of(asked, layout, there),)), [0])
    assert says in str(checks_of(asked, row, layout, there, builders=BUILDERS, phases=("decode",)))
