"""`distaff eval`: what a model's numbers cost in quality."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import InvalidParameterError, UsageError
from .options import Backend, Debug, Dtype, Json, KVDtype, Offline, Quantize
from .output import print_json
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..serving.quality import Quality

DEFAULT_WINDOW = 512
LIMITS = "Limits"
"""Title of the options that make it fail."""
HARNESS = "Tasks"
"""Title of the options of lm-evaluation-harness."""


MaxKL = Annotated[
    float | None,
    typer.Option("--max-kl", help="Fail if the mean KL is above this.", metavar="NATS", rich_help_panel=LIMITS),
]
MaxPplIncrease = Annotated[
    float | None,
    typer.Option(
        "--max-ppl-increase",
        help="Fail if perplexity rises by more than this share, such as 0.02.",
        metavar="X",
        rich_help_panel=LIMITS,
    ),
]


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What --model takes: a name, a folder, a .gguf file.")],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="REF", help="Compare with this one, in fp32. [default: MODEL unrounded]"),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Text to read, UTF-8. [default: a sample]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", min=64, help="Read no more than these.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="N", min=16, help="Tokens that are read at once, from nothing. [default: 512]"
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What MODEL's weights are held in.")] = Dtype.FLOAT32,
    kv_dtype: KVDtype = None,
    quantize: Quantize = None,
    backend: Backend = "auto",
    max_kl: MaxKL = None,
    max_ppl_increase: MaxPplIncrease = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="Answer tasks of the lm-evaluation-harness instead of reading a text (the extra 'eval').",
            rich_help_panel=HARNESS,
        ),
    ] = None,
    task_folder: Annotated[
        Path | None,
        typer.Option("--task-folder", metavar="DIR", help="With more tasks, as YAML files.", rich_help_panel=HARNESS),
    ] = None,
    task_limit: Annotated[
        int | None,
        typer.Option("--task-limit", metavar="N", min=1, help="Questions of each task.", rich_help_panel=HARNESS),
    ] = None,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a model on a text, and how far it is from another.

    Perplexity alone, or with --against, --quantize, --kv-dtype or another --dtype also the divergence from the
    reference at every place of the text. The options apply to MODEL; the reference is computed in fp32.

    \b
    Examples:
      distaff eval smollm2-135m-instruct
      distaff eval smollm2-135m-instruct --quantize int8 --kv-dtype int8
      distaff eval ./smaller --against smollm2-135m-instruct --max-kl 0.05 --json
      distaff eval ./smaller --tasks arc_easy,piqa --task-limit 200

    \b
    --json prints one object:
      model, reference, dtype, quantize, kv_dtype, backend, window, tokens, perplexity, and with a reference
      reference_perplexity, mean_kl, p99_kl, max_kl (nats), top1_agreement, greedy_divergence, greedy_tokens;
      with --tasks model, dtype, quantize, kv_dtype, backend, tasks (their figures by their names)
    """
    with reporting(debug):
        prepare_devices()
        if tasks is not None:
            given = {
                "--against": against,
                "--text": text,
                "--tokens": tokens,
                "--window": window,
                "--max-kl": max_kl,
                "--max-ppl-increase": max_ppl_increase,
            }
            if named := [option for option, value in given.items() if value is not None]:
                raise UsageError(f"--tasks asks MODEL alone, and reads no text: leave {', '.join(named)} out")
            options = {"dtype": dtype.value, "quantize": quantize, "kv_dtype": kv_dtype, "backend": backend}
            _answer(model, tasks, task_folder, task_limit, options | {"offline": offline or None}, json)
            return
        if task_folder is not None or task_limit is not None:
            raise UsageError("--task-folder and --task-limit are for tasks: give --tasks NAMES")
        size = window or DEFAULT_WINDOW
        compared = against or (model if quantize or kv_dtype or dtype is not Dtype.FLOAT32 else None)
        if compared is None and (max_kl is not None or max_ppl_increase is not None):
            raise UsageError("--max-kl and --max-ppl-increase need something to compare with: give --against REF")
        from ..backends.select import select_backend
        from ..serving.evaluate import Measured, measure_quality
        from ..serving.quality import check_quality

        with ProgressDisplay(model) as display:
            subject = Measured(model, dtype=dtype.value, quantize=quantize, kv_dtype=kv_dtype)
            reference = None if compared is None else Measured(compared)
            quality = measure_quality(
                subject,
                reference,
                text=read_text("--text", text),
                max_tokens=tokens,
                window=size,
                backend=backend,
                offline=offline or None,
                progress=lambda done, total: display(Step("read", done, total)),
            )
        told = {
            "model": model,
            "reference": compared,
            "dtype": dtype.value,
            "quantize": quantize,
            "kv_dtype": kv_dtype,
            "backend": select_backend(backend).name,
            "window": size,
        }
        if json:
            print_json(told | quality.to_dict())
        else:
            typer.echo("\n".join(quality_table(quality)))
        check_quality(quality, max_kl=max_kl, max_ppl_increase=max_ppl_increase)


def _answer(
    model: str, tasks: str, folder: Path | None, limit: int | None, options: dict[str, Any], json: bool
) -> None:
    """Lets a model answer tasks, and prints their figures."""
    from ..serving.harness import check_harness, run_tasks

    if folder is not None and not folder.is_dir():
        raise UsageError(f"--task-folder {folder}: found no folder there, expected one with YAML files of tasks")
    check_harness()
    from ..serving import LLM

    with ProgressDisplay(model) as display:
        llm = LLM(model, on_progress=display, **options)
    figures = run_tasks(llm, [name for name in tasks.split(",") if name], folder=folder, limit=limit)
    if json:
        told = {name: options[name] for name in ("dtype", "quantize", "kv_dtype")}
        print_json({"model": model, **told, "backend": llm.backend.name, "tasks": figures})
        return
    for name, numbers in figures.items():
        for figure, value in numbers.items():
            typer.echo(f"{f'{name}, {figure}':<50}{value:.4f}")


def read_text(option: str, path: Path | None) -> str | None:
    """The text file that an option names.

    Raises:
        UsageError: it cannot be read, or it is empty.
    """
    if path is None:
        return None
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: cannot be read as UTF-8 ({error}); give a text file") from error
    if not found.strip():
        raise InvalidParameterError(option, str(path), "a file with text in it")
    return found


def quality_table(quality: "Quality") -> list[str]:
    """For people."""
    rows: list[tuple[str, Any, str]] = [
        ("tokens", quality.tokens, "d"),
        ("perplexity", quality.perplexity, ".4f"),
        ("perplexity of the reference", quality.reference_perplexity, ".4f"),
        ("mean KL, nats", quality.mean_kl, ".5f"),
        ("99th percentile of KL", quality.p99_kl, ".5f"),
        ("largest KL", quality.max_kl, ".5f"),
        ("same most likely token", quality.top1_agreement, ".2%"),
        (f"greedy tokens alike, of {quality.greedy_tokens}", quality.greedy_divergence, ".1f"),
    ]
    return [f"{name:<30}{format(value, form)}" for name, value, form in rows if value is not None]
