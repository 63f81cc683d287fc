"""Measured steps in a file, for `distaff sweep calibrate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from ..backends.hardware import Chip
from ..sharding.parsing import parse_layout
from ..sharding.sweep.calibrate import Calibration, Point
from ..sharding.sweep.errors import SweepError
from ..sharding.sweep.models import model_config
from ..sharding.sweep.request import WIDTHS
from ..sharding.sweep.roofline import Rates, Steps
from ..sharding.sweep.slices import parse_slice
from ..sharding.sweep.work import device_work

_FIELDS = ("model", "hw", "layout", "phase", "rows", "tokens", "context", "weights", "kv", "ms")


def read_points(path: Path, chips: Mapping[str, Chip], *, offline: bool) -> list[Point]:
    """Reads a list of steps: model, hw, layout, phase (decode, with rows of a context; or prefill, with tokens), ms.

    Raises:
        SweepError: the file is not such a list.
    """
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
        return [_point(fields, chips, offline=offline) for fields in read]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise SweepError(
            f"--points {path}: expected a list of steps with {', '.join(_FIELDS)} ({type(error).__name__}: {error})"
        ) from error


def calibration_object(found: Calibration) -> dict[str, Any]:
    """A calibration as JSON."""
    return {
        "best": found.best.as_dict(),
        "mean_error": found.mean_error,
        "worst_error": found.worst_error,
        "points": [
            {
                "name": each.name,
                "ms": each.seconds * 1e3,
                "fitted_ms": each.fitted * 1e3,
                "left_out_ms": each.left_out * 1e3,
                "error": each.error,
            }
            for each in found.estimates
        ],
    }


def print_calibration(found: Calibration) -> None:
    """What `distaff sweep calibrate` prints."""
    for each in found.estimates:
        typer.echo(
            f"{each.name}: measured {each.seconds * 1e3:.3g} ms, by the other points {each.left_out * 1e3:.3g} ms "
            f"({each.error:+.0%})"
        )
    typer.echo(f"left out one by one: mean error {found.mean_error:.1%}, worst {found.worst_error:.1%}")


def _point(fields: Mapping[str, Any], chips: Mapping[str, Chip], *, offline: bool) -> Point:
    decode = {"decode": True, "prefill": False}[fields["phase"]]
    on = parse_slice(fields["hw"], chips)
    config = model_config(fields["model"], offline=offline)
    layout = parse_layout(str(fields["layout"]), num_devices=on.num_devices)
    rows = float(fields.get("rows", 1)) / layout.replicas
    tokens = rows if decode else float(fields["tokens"])
    context = float(fields.get("context", 0 if decode else tokens))
    return Point(
        name=str(fields.get("name", f"{fields['hw']} {layout} {fields['phase']} {fields.get('rows', tokens):g}")),
        work=device_work(config, layout, on, decode=decode),
        rates=Rates.of(on.chip),
        steps=Steps.one(
            tokens=tokens,
            rows=rows,
            keys=context if decode else context / 2,
            read=rows * context,
            weight_bytes=WIDTHS[fields.get("weights", "bf16")],
            cache_bytes=WIDTHS[fields.get("kv", "bf16")],
        ),
        seconds=float(fields["ms"]) / 1e3,
    )
