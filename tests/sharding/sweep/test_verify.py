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
from distaff.sharding.sweep.verify import Check, checks_of, run_checks

from .asked import V5E, request


@pytest.mark.slow
def test_a_crash_and_a_time_out_are_answers_of_their_rows(tmp_path: Path) -> None:
    """And none of them is kept: another machine, or more time, may have another one."""
    place = Path(__file__).parent / "builders.py"
    jobs = {name: CompileJob(f"{place}:{name}", {}, "v5e:2x2") for name in ("crash", "hang", "refuse")}
    checks = [Check(name, "decode", StepShape(1), job) for name, job in jobs.items()]
    cache = CompileCache(tmp_path)
    found = {each.check.row: each.refused for each in run_checks(checks, cache, timeout=15)}
    kinds = {name: None if refused is None else refused["kind"] for name, refused in found.items()}
    assert kinds == {"crash": "abort", "hang": "timeout", "refuse": "compiler"}
    assert found["crash"] is not None and "SIGABRT" in found["crash"]["message"]
    assert found["refuse"] is not None and "no such thing" in found["refuse"]["message"]
    assert [cache.get(job) is None for job in jobs.values()] == [True, True, False]


def test_what_is_compiled_is_the_step_of_the_row() -> None:
    asked, layout = request(batches=(8,)), parse_layout("data=2,tensor=2", num_devices=4)
    (row,) = rows_of(score(asked, (Placed.of(asked, layout, V5E),)), [0])
    checks = checks_of(asked, row, layout, V5E, builder="a:b", phases=("decode", "prefill"))
    assert not isinstance(checks, str)
    assert [(each.phase, each.shape) for each in checks] == [
        ("decode", StepShape(4)),  # of each replica
        ("prefill", StepShape(1, 512)),  # no more than a prompt has
    ]
    assert checks[0].job.topology == "v5e:2x2" and checks[0].job.arguments["context"] == 576


@pytest.mark.parametrize(
    ("fields", "on", "says"),
    [
        ({"weights": ("int8",)}, "v5e:2x2", "steps compute with weights of fp32, bf16 alone"),
        ({"activations": ("fp32",)}, "v5e:2x2", "steps hold weights in the precision that they compute in"),
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
    assert says in str(checks_of(asked, row, layout, there, builder="a:b", phases=("decode",)))
