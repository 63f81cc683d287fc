"""`distaff compress distill`: a student learns from a teacher."""

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends.errors import InvalidParameterError, UsageError
from .compress_options import Destination, Overwrite, Text, Tokens, Window, measurement
from .evaluate import MaxKL, MaxPplIncrease, quality_table, read_text
from .options import Backend, Debug, Devices, Dtype, Json, Layout, Offline
from .output import print_json
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .startup import prepare_layout

if TYPE_CHECKING:
    from ..serving.distill import Trained

TRAINING = "Training"
"""Title of the options that say how it learns."""


def distill(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="What learns: a pruned or a smaller model of the same tokenizer.")
    ],
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="What it learns from, as --model takes it.")],
    destination: Destination,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            metavar="FILE",
            help='What both read: text, or .jsonl of {"text": ...} or of answers of distaff batch. [default: a sample]',
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Updates.", rich_help_panel=TRAINING)] = 200,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=1, help="Rows that each update sees.", rich_help_panel=TRAINING)
    ] = 8,
    length: Annotated[
        int,
        typer.Option(
            "--length",
            metavar="N",
            min=2,
            help="Tokens of a row; texts are packed into them.",
            rich_help_panel=TRAINING,
        ),
    ] = 256,
    accumulate: Annotated[
        int,
        typer.Option(
            "--accumulate", metavar="N", min=1, help="Compute these rows in N parts.", rich_help_panel=TRAINING
        ),
    ] = 1,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="X", help="The highest: warm-up, then a cosine.", rich_help_panel=TRAINING
        ),
    ] = 1e-4,
    warmup: Annotated[
        float, typer.Option("--warmup", metavar="X", help="Share of steps that warm up.", rich_help_panel=TRAINING)
    ] = 0.05,
    decay: Annotated[
        float, typer.Option("--weight-decay", metavar="X", min=0, help="Of matrices.", rich_help_panel=TRAINING)
    ] = 0.0,
    temperature: Annotated[
        float,
        typer.Option("--temperature", metavar="T", help="That both logits are divided by.", rich_help_panel=TRAINING),
    ] = 1.0,
    hidden: Annotated[
        float,
        typer.Option(
            "--hidden-weight",
            metavar="X",
            help="What the difference of hidden states counts beside the KL.",
            rich_help_panel=TRAINING,
        ),
    ] = 0.0,
    layer_map: Annotated[
        str | None,
        typer.Option(
            "--layer-map",
            metavar="S:T,...",
            help="Layers of student and teacher that put out the same. [default: as pruned, or spread evenly]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    freeze: Annotated[
        bool,
        typer.Option("--freeze-embeddings", help="Train nothing but layers and norms.", rich_help_panel=TRAINING),
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Compute layers twice rather than keep what they made.", rich_help_panel=TRAINING
        ),
    ] = False,
    compute_dtype: Annotated[
        Dtype, typer.Option("--compute-dtype", help="What both compute in.", rich_help_panel=TRAINING)
    ] = Dtype.FLOAT32,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the order of rows.", rich_help_panel=TRAINING)
    ] = 0,
    measure_every: Annotated[
        int,
        typer.Option(
            "--measure-every", metavar="N", min=1, help="Steps between measurements.", rich_help_panel=TRAINING
        ),
    ] = 50,
    save_every: Annotated[
        int,
        typer.Option("--save-every", metavar="N", min=1, help="Steps between states.", rich_help_panel=TRAINING),
    ] = 100,
    layout: Layout = None,
    devices: Devices = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="What is written, and measured.")] = Dtype.BFLOAT16,
    text: Text = None,
    tokens: Tokens = None,
    window: Window = 512,
    backend: Backend = "auto",
    max_kl: MaxKL = None,
    max_ppl_increase: MaxPplIncrease = None,
    overwrite: Overwrite = False,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a smaller model to expect what a larger one does.

    Recovers what pruning took, or makes a draft model. The state of an unfinished training is in DST.training; the
    same command goes on from there. What came out is compared with TEACHER in fp32; DST appears when it is complete
    and within the limits, or not at all.

    \b
    Examples:
      distaff compress distill ./smollm2-24 smollm2-135m-instruct ./smollm2-24-healed --train answers.jsonl
      distaff compress distill ./draft ./my-model ./my-draft --train texts.jsonl --layout data=2 --devices 2

    \b
    --json prints one object:
      student, teacher, destination, steps, trained_tokens, text_tokens, kl_before, kl_after, acceptance_before,
      acceptance, greedy_agreement, seconds, tokens, perplexity, reference_perplexity, mean_kl, p99_kl, max_kl,
      top1_agreement, greedy_divergence, greedy_tokens
    """
    with reporting(debug):
        prepare_layout(layout, devices)
        from ..models.compress.distill import Recipe
        from ..serving.distill import distill_checkpoint

        recipe = Recipe(
            steps=steps,
            rows=rows,
            accumulate=accumulate,
            learning_rate=learning_rate,
            warmup=warmup,
            temperature=temperature,
            hidden=hidden,
            layer_map=parse_layer_map(layer_map),
            decay=decay,
            compute=compute_dtype.value,
            remember=not recompute,
            frozen=("embedder", "unembedder") if freeze else (),
            seed=seed,
        )
        start = time.monotonic()
        measure = measurement(
            text=text,
            tokens=tokens,
            window=window,
            backend=backend,
            max_kl=max_kl,
            max_ppl_increase=max_ppl_increase,
        )
        with ProgressDisplay(student) as display:

            def show(done: "Trained") -> None:
                step = done.step
                display(Step("train", step.done, step.total))
                if step.done % measure_every == 0 or step.done == step.total:
                    loss = f"loss {step.loss:.4f}, " if step.done else ""
                    display.say(f"step {step.done} of {step.total}: {loss}held-out KL {done.held_out['kl']:.4f}")

            done = distill_checkpoint(
                student,
                teacher,
                destination,
                recipe,
                texts=None if train is None else read_texts(train),
                length=length,
                layout=layout,
                dtype=dtype.value,
                measurement=measure,
                measure_every=measure_every,
                save_every=save_every,
                overwrite=overwrite,
                offline=offline or None,
                progress=show,
            )
        told, seconds = done.told, time.monotonic() - start
        if json:
            described = {"destination": str(destination), "seconds": seconds}
            print_json(told | described | done.quality.to_dict())
        else:
            typer.echo("\n".join(quality_table(done.quality)))
            typer.echo(f"{'KL before and after, nats':<30}{told['kl_before']:.5f} {told['kl_after']:.5f}")
            typer.echo(f"{'acceptance before and after':<30}{told['acceptance_before']:.2%} {told['acceptance']:.2%}")
            typer.echo(f"wrote {destination} ({told['trained_tokens']:,} tokens in {steps} steps, {seconds:.0f} s)")


def parse_layer_map(text: str | None) -> tuple[tuple[int, int], ...]:
    """Pairs such as "0:1,1:3".

    Raises:
        InvalidParameterError: it is something else.
    """
    if text is None:
        return ()
    try:
        pairs = [tuple(int(part) for part in pair.split(":")) for pair in text.split(",")]
        return tuple((own, other) for own, other in pairs)
    except ValueError:
        raise InvalidParameterError("layer_map", text, "pairs of layers such as 0:1,1:3") from None


def read_texts(path: Path) -> list[str]:
    """The texts of a file: one, or of a .jsonl file one of each line.

    Raises:
        UsageError: it cannot be read, or a line holds no text.
        InvalidParameterError: it is empty.
    """
    found = read_text("--train", path)
    assert found is not None
    if path.suffix != ".jsonl":
        return [found]
    texts: list[str] = []
    for number, line in enumerate(found.splitlines(), 1):
        if line.strip():
            try:
                texts.append(_text_of(json_module.loads(line)))
            except (ValueError, TypeError, KeyError, IndexError):
                raise UsageError(
                    f'--train {path}: line {number} has no text, expected {{"text": ...}} or an answer of distaff batch'
                ) from None
    return texts


def _text_of(line: Any) -> str:
    if "text" in line:
        text = line["text"]
    else:
        choice = line["response"]["body"]["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    if not isinstance(text, str):
        raise TypeError
    return text
