"""`distaff compress`: smaller models, with the loss measured before anybody serves them."""

from pathlib import Path
from typing import Annotated

import typer

from .compress_distill import distill
from .compress_prune import prune
from .evaluate import MaxKL, MaxPplIncrease, check_quality, quality_table, read_text
from .options import Backend, Debug, Dtype, Json, Offline
from .output import print_json, size_text
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .sections import SectionedCommand
from .startup import prepare_devices

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make a model smaller, and measure what that costs."
)
app.command("prune")(prune)
app.command("distill", cls=SectionedCommand)(distill)


@app.command("quantize")
def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="What --model takes: a name, a folder, a .gguf file, a hub id.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme", metavar="SCHEME", help="int8 (activations too), int8-weight, int4, int4:G, fp8, fp8-weight."
        ),
    ] = "int8",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="How numbers are chosen: rtn (to nearest); by a text gptq, awq (weights alone) or smoothquant (int8).",
        ),
    ] = "rtn",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Text for the method, UTF-8. [default: a sample]"),
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(
            "--calibration-tokens", metavar="N", min=256, help="Read no more of it than these. [default: 4096]"
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What stays, such as norms and the table of the vocabulary, is stored in.")
    ] = Dtype.BFLOAT16,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Text to measure with, UTF-8. [default: a sample]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", min=64, help="Measure with no more than these.")
    ] = None,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=16, help="Tokens that are read at once, from nothing.")
    ] = 512,
    backend: Backend = "auto",
    max_kl: MaxKL = None,
    max_ppl_increase: MaxPplIncrease = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Round a model's matrices to fewer bits.

    Writes safetensors in the layout of compressed-tensors. What came out is compared with SRC in fp32; DST appears
    when it is complete and within the limits, or not at all.

    \b
    Examples:
      distaff compress quantize smollm2-135m-instruct ./smollm2-int8 --scheme int8
      distaff compress quantize ./my-model ./my-model-int4 --scheme int4 --method gptq --max-ppl-increase 0.05

    \b
    --json prints one object:
      source, destination, scheme, method, bytes_before, bytes, tokens, perplexity, reference_perplexity, mean_kl,
      p99_kl, max_kl, top1_agreement, greedy_divergence, greedy_tokens
    """
    with reporting(debug):
        prepare_devices()
        from ..serving.compress import quantize_checkpoint

        with ProgressDisplay(source) as display:
            done = quantize_checkpoint(
                source,
                destination,
                scheme,
                method=method,
                calibration=read_text("--calibration", calibration),
                calibration_tokens=calibration_tokens,
                dtype=dtype.value,
                text=read_text("--text", text),
                max_tokens=tokens,
                window=window,
                backend=backend,
                overwrite=overwrite,
                offline=offline or None,
                check=lambda quality: check_quality(quality, max_kl=max_kl, max_ppl_increase=max_ppl_increase),
                progress=lambda stage, done, total: display(Step(stage, done, total)),
            )
        if json:
            described = {"source": source, "destination": str(destination), "scheme": scheme, "method": method}
            sizes = {"bytes_before": done.before, "bytes": done.after}
            print_json(described | sizes | done.quality.to_dict())
        else:
            typer.echo("\n".join(quality_table(done.quality)))
            typer.echo(f"wrote {destination} ({scheme}, {size_text(done.before)} -> {size_text(done.after)})")
