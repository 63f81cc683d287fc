"""`distaff compress prune`: weights, heads, channels or layers go."""

from typing import Annotated

import typer

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
from .evaluate import MaxKL, MaxPplIncrease, quality_table, read_text
from .options import Backend, Debug, Dtype, Json, Offline
from .output import print_json
from .progress import ProgressDisplay, Step
from .reporting import reporting
from .startup import prepare_devices


def prune(
    source: Source,
    destination: Destination,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="PATTERN",
            help="What goes: unstructured, 2:4, 4:8 (zeros); heads, query-heads, channels, layers (a smaller model).",
        ),
    ] = "unstructured",
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", metavar="X", help="The share that goes, between 0 and 1.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="How it is chosen: magnitude, wanda, sparsegpt (the rest makes good for it). [default: wanda; layers "
            "go by the angle between what goes in and what comes out]",
        ),
    ] = None,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = None,
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
    """Take weights, heads, channels or layers out of a model.

    Zeros leave the model's shape as it is; heads, channels and layers leave a smaller model, which runs faster
    wherever the model did. What came out is compared with SRC in fp32; DST appears when it is complete and within the
    limits, or not at all.

    \b
    Examples:
      distaff compress prune smollm2-135m-instruct ./smollm2-24 --pattern layers --sparsity 0.2
      distaff compress prune ./my-model ./my-model-2-4 --pattern 2:4 --method sparsegpt --max-ppl-increase 0.5

    \b
    --json prints one object:
      source, destination, pattern, method, sparsity, zeros (of unstructured, 2:4, 4:8), removed and angular_distance
      (of layers), parameters_before, parameters, tokens, perplexity, reference_perplexity, mean_kl, p99_kl, max_kl,
      top1_agreement, greedy_divergence, greedy_tokens
    """
    with reporting(debug):
        prepare_devices()
        from ..serving.prune import prune_checkpoint

        measure = measurement(
            text=text,
            tokens=tokens,
            window=window,
            backend=backend,
            max_kl=max_kl,
            max_ppl_increase=max_ppl_increase,
        )
        with ProgressDisplay(source) as display:
            done = prune_checkpoint(
                source,
                destination,
                pattern=pattern,
                method=method,
                sparsity=sparsity,
                calibration=read_text("--calibration", calibration),
                calibration_tokens=calibration_tokens,
                dtype=dtype.value,
                measurement=measure,
                overwrite=overwrite,
                offline=offline or None,
                progress=lambda stage, done, total: display(Step(stage, done, total)),
            )
        if json:
            described = {"source": source, "destination": str(destination)}
            print_json(done.told | described | done.quality.to_dict())
        else:
            typer.echo("\n".join(quality_table(done.quality)))
            went = ", ".join(f"layer {layer}" for layer in done.told.get("removed", []))
            what = f"without {went}" if went else f"{pattern}, {done.told['method']}"
            typer.echo(
                f"wrote {destination} ({what}; {done.parameters_before / 1e6:,.1f} M -> "
                f"{done.parameters / 1e6:,.1f} M parameters)"
            )
