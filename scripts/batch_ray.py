"""`distaff batch --runner ray`: the same job on a cluster."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from ..backends.errors import UsageError
from .startup import prepare_layout

if TYPE_CHECKING:
    from ..serving import LLM
    from ..serving.batch_jobs.ray_worker import RayPlan

_PART_LINES = 256
"""Lines that a part of the input has at least."""


def load(model: str, options: Mapping[str, Any]) -> "LLM":
    """In an actor of Ray: a model that is ready."""
    prepare_layout(options.get("layout"), None)
    from ..serving import LLM

    llm = LLM(model, **options)
    llm.engine.warm_up()
    return llm


def run_on_ray(
    plan: "RayPlan",
    lines: int,
    workers: int,
    address: str | None,
    resources: Mapping[str, float],
    *,
    resume: bool,
    overwrite: bool,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Spreads a job over a cluster; on resuming it stays cut as it was."""
    from ..serving.batch_jobs.job import open_store
    from ..serving.batch_jobs.merge import shards_of
    from ..serving.batch_jobs.ray_runner import RayRunner
    from ..serving.batch_jobs.ray_worker import num_parts

    store = open_store(plan.output)
    complete = store.read_manifest()
    if complete is not None and resume:
        return complete
    there = [*shards_of(plan.output), *store.found()]
    if there and not (resume or overwrite):
        raise UsageError(
            f"{plan.output}: the output or parts of it exist already; --resume goes on with that job, --overwrite "
            "replaces it"
        )
    if overwrite:
        for shard in shards_of(plan.output):
            open_store(shard.name(plan.output)).forget()
    shards = shards_of(plan.output)
    parts = len(shards) or num_parts(lines, workers, part_lines=_PART_LINES)
    runner = RayRunner(
        plan,
        parts=parts,
        workers=workers,
        resources=resources or None,
        address=address,
        on_part=lambda done, parts: typer.echo(f"{done}/{parts} parts", err=True),
        stopping=stopping,
    )
    return runner.run(overwrite=overwrite)
