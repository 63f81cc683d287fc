"""The options of `distaff batch`: what is read, what kind of job it is, and Ray's."""

from enum import StrEnum
from typing import Annotated

import typer

from ..serving.batch_jobs.formats import Endpoint, Format
from ..serving.batch_jobs.line import Ids

INPUT = "What is read"
JOB = "The job"
RAY = "A Ray cluster"


class RunnerKind(StrEnum):
    """Where a job runs."""

    LOCAL = "local"
    RAY = "ray"


FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="What the input is, where its name does not say.", rich_help_panel=INPUT),
]

EndpointOption = Annotated[
    Endpoint,
    typer.Option("--endpoint", help="What prompts of text, CSV and Parquet are sent as.", rich_help_panel=INPUT),
]

PromptColumn = Annotated[
    str | None,
    typer.Option("--prompt-column", help="Of CSV and Parquet.", metavar="NAME", rich_help_panel=INPUT),
]

Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="Makes a prompt of columns: 'Translate {text} to {language}'; {prompt} is a line of text.",
        metavar="TEXT",
        rich_help_panel=INPUT,
    ),
]

IdColumn = Annotated[
    str | None,
    typer.Option(
        "--id-column",
        help="Of CSV and Parquet: custom_id. [default: line-N]",
        metavar="NAME",
        rich_help_panel=INPUT,
    ),
]

Defaults = Annotated[
    str | None,
    typer.Option(
        "--defaults",
        help="Fields for requests that do not set them, such as '{\"max_tokens\": 64}'.",
        metavar="JSON",
        rich_help_panel=INPUT,
    ),
]

IdOption = Annotated[
    Ids,
    typer.Option(
        "--ids",
        help="A custom_id that is missing or not the first: fail the line, or make one.",
        rich_help_panel=INPUT,
    ),
]

ServedModelName = Annotated[
    list[str] | None,
    typer.Option(
        "--served-model-name",
        help="Fail lines that name another model; may be given several times. [default: any is this one]",
        metavar="NAME",
        rich_help_panel=INPUT,
    ),
]

Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an earlier run stopped, if one did.", rich_help_panel=JOB)
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what an earlier job left here.", rich_help_panel=JOB)
]

Seed = Annotated[int, typer.Option("--seed", help="Of lines that name none.", metavar="N", min=0, rich_help_panel=JOB)]

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Part I of N, from 0; 'distaff batch merge' joins them.",
        metavar="I/N",
        rich_help_panel=JOB,
    ),
]

RunnerOption = Annotated[
    RunnerKind, typer.Option("--runner", help="ray: spread over a Ray cluster.", rich_help_panel=RAY)
]

Workers = Annotated[
    int, typer.Option("--workers", help="Most actors at once.", metavar="N", min=1, rich_help_panel=RAY)
]

RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Of the cluster. [default: this machine's, or a new one]", rich_help_panel=RAY),
]

RayResources = Annotated[
    str | None,
    typer.Option(
        "--ray-resources",
        help='What each actor takes, such as \'{"TPU": 4}\'. [default: {"CPU": 1}]',
        metavar="JSON",
        rich_help_panel=RAY,
    ),
]

TolerateErrors = Annotated[
    bool,
    typer.Option(
        "--tolerate-errors",
        help="Exit with 0 though some lines failed, where a cluster would try again.",
        rich_help_panel=JOB,
    ),
]

Price = Annotated[
    float | None,
    typer.Option(
        "--price", help="Dollars for a chip-hour. [default: the hardware table's]", metavar="X", rich_help_panel=JOB
    ),
]
