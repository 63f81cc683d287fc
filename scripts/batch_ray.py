"""`distaff batch --runner ray`: the same job on a cluster."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from ..backends.errors import UsageError
from .startup import prepare_layout

if TYPE_CHECKING:
    from ..serving import LLM
    from ..serving.batch_jobs.job import Job
    from ..serving.batch_jobs.ray_worker import RayPlan

_PART_LINES = 256
"""Lines that a part of the input has at least."""


def load(model: str, options: Mapping[str, Any]) -> "LLM":
    """In an actor of Ray: a model that is ready."""
    prepare_layout(options.get("layout"), None)
    from ..serving import LLM
    from ..serving.garbage import settle_memory

    llm = LLM(model, **options)
    llm.engine.warm_up()
    settle_memory()
    return llm


def run_on_ray(
    job: "Job",
    plan: "RayPlan",
    workers: int,
    address: str | None,
    resources: Mapping[str, float],
    *,
    resume: bool,
    overwrite: bool,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Spreads a job over a cluster; on resuming it stays cut as it was.

    Returns:
        The manifest.

    Raises:
        UsageError: there are parts already, and nobody said what to do with them.
    """
    from ..serving.batch_jobs.job import open_store
    from ..serving.batch_jobs.merge import publish_shards, shards_of
    from ..serving.batch_jobs.ray_runner import RayRunner
    from ..serving.batch_jobs.ray_worker import num_parts

    shards = shards_of(plan.output)
    if shards and not (resume or overwrite):
        raise UsageError(
            f"{plan.output}: parts of it exist already; --resume goes on with that job, --overwrite replaces it"
        )
    if overwrite:
        for shard in shards:
            open_store(shard.name(plan.output)).forget()
        shards = []
    runner = RayRunner(
        plan,
        parts=len(shards) or num_parts(job.total, workers, part_lines=_PART_LINES),
        workers=workers,
        resources=resources or None,
        address=address,
        on_part=lambda done, parts: typer.echo(f"{done}/{parts} parts", err=True),
        stopping=stopping,
    )
    runner.run()
    return publish_shards(job, plan.output)
