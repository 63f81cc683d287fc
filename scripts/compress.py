"""`distaff compress`: smaller models, with the loss measured before anybody serves them."""

from typing import Annotated

import typer

from .compress_distill import distill
from .compress_options import (
    Calibration,
    CalibrationTokens,
    Destination,
    Overwrite,
    Source,
    Text,
    Tokens,
    Window,
    measurement,
)
from .compress_prune import prune
from .evaluate import MaxKL, MaxPplIncrease, quality_table, read_text
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
    source: Source,
    destination: Destination,
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
    rotate: Annotated[
        bool,
        typer.Option("--rotate", help="Turn the model's stream first, so that no channel of it stands out (RMSNorm)."),
    ] = False,
    head: Annotated[
        bool,
        typer.Option("--head", help="Round the matrix that scores the vocabulary too; a tied table needs --rotate."),
    ] = False,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What stays, such as norms and the table of the vocabulary, is stored in.")
    ] = Dtype.BFLOAT16,
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
    """Round a model's matrices to fewer bits.

    Writes safetensors in the layout of compressed-tensors. What came out is compared with SRC in fp32; DST appears
    when it is complete and within the limits, or not at all.

    \b
    Examples:
      distaff compress quantize smollm2-135m-instruct ./smollm2-int8 --scheme int8
      distaff compress quantize ./my-model ./my-model-int4 --scheme int4 --method gptq --max-ppl-increase 0.05

    \b
    --json prints one object:
      source, destination, scheme, method, rotate, head, bytes_before, bytes, tokens, perplexity,
      reference_perplexity, mean_kl, p99_kl, max_kl, top1_agreement, greedy_divergence, greedy_tokens
    """
    with reporting(debug):
        prepare_devices()
        from ..serving.compress import quantize_checkpoint

        measure = measurement(
            text=text,
            tokens=tokens,
            window=window,
            backend=backend,
            max_kl=max_kl,
            max_ppl_increase=max_ppl_increase,
        )
        with ProgressDisplay(source) as display:
            done = quantize_checkpoint(
                source,
                destination,
                scheme,
                method=method,
                rotate=rotate,
                head=head,
                calibration=read_text("--calibration", calibration),
                calibration_tokens=calibration_tokens,
                dtype=dtype.value,
                measurement=measure,
                overwrite=overwrite,
                offline=offline or None,
                progress=lambda stage, done, total: display(Step(stage, done, total)),
            )
        if json:
            described = {"source": source, "destination": str(destination), "scheme": scheme, "method": method}
            described |= {"rotate": rotate, "head": head}
            sizes = {"bytes_before": done.before, "bytes": done.after}
            print_json(described | sizes | done.quality.to_dict())
        else:
            typer.echo("\n".join(quality_table(done.quality)))
            typer.echo(f"wrote {destination} ({scheme}, {size_text(done.before)} -> {size_text(done.after)})")
