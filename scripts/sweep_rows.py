"""The commands of `distaff sweep` about rows that a sweep has found: explain, diff, emit, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..backends.errors import UsageError
from .options import Debug, Json, Offline
from .output import print_json
from .reporting import reporting
from .startup import prepare_devices
from .sweep_request import request_of
from .sweep_tables import print_diff, print_explained

if TYPE_CHECKING:
    from ..sharding.layout import Layout
    from ..sharding.sweep.request import SweepRequest
    from ..sharding.sweep.slices import Slice

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Of a sweep, as plan --out made it.")]
RowId = Annotated[str, typer.Argument(metavar="ID", help="Of a row, or its first characters; best is the first row.")]


def explain(
    folder: Folder,
    row_id: RowId,
    offline: Offline = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a row's time goes to, what binds it, and what changes would bring.

    \b
    Examples:
      distaff sweep explain run best
      distaff sweep explain run 1a2b --json

    \b
    --json prints one object: row, decode_shares and prefill_shares (fractions of a step), changes (what would be
    with one thing different), advice.
    """
    with reporting(debug):
        prepare_devices()
        from ..sharding.sweep.explain import advice, counterfactuals, shares

        request, row, layout, on = _found(folder, row_id, offline)
        changes = counterfactuals(request, row, layout, on)
        explained = {
            "row": row,
            "decode_shares": shares(row["decode_ms"]),
            "prefill_shares": shares(row["prefill_ms"]),
            "changes": changes,
            "advice": advice(row, changes, request.phase),
        }
        if json:
            print_json(explained)
        else:
            print_explained(explained)


def diff(folder: Folder, first: RowId, second: RowId, json: Json = False, debug: Debug = False) -> None:
    """Show two rows beside each other, with ratios.

    \b
    Examples:
      distaff sweep diff run 1a2b 3c4d
    """
    with reporting(debug):
        from ..sharding.sweep.store import flat, load

        found = load(folder)
        rows = [flat(found.row(each)) for each in (first, second)]
        if json:
            print_json({"first": rows[0], "second": rows[1]})
        else:
            print_diff(rows[0], rows[1])


def emit(
    folder: Folder,
    row_id: Annotated[
        str, typer.Argument(metavar="ID", help="Of a row; best, the first; or pair, the best pair for both phases.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .yaml file. [default: stdout]")
    ] = None,
    phase: Annotated[
        Literal["prefill", "decode"] | None, typer.Option("--phase", help="Of a pair: whose layout.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a row's layout as the YAML that --layout takes.

    \b
    Examples:
      distaff sweep emit run best -o layout.yaml
      distaff sweep emit run pair --phase prefill -o prefill.yaml
      distaff generate -m smollm2-135m-instruct --layout layout.yaml --devices 8 --prompt Hello
    """
    with reporting(debug):
        prepare_devices()
        import yaml

        from ..sharding.parsing import layout_yaml
        from ..sharding.sweep.store import load

        found = load(folder)
        if (row_id == "pair") != (phase is not None):
            raise UsageError(
                "--phase says whose layout of a pair is meant: distaff sweep emit DIR pair --phase prefill"
            )
        if phase is not None:
            if not found.pairs:
                raise UsageError(f"{folder} has no pairs: plan with --phase both, on chips whose network is known")
            pair = found.pairs[0]
            about = f"# {phase} on {pair[f'{phase}_hw']}, of a pair"
            text = yaml.safe_dump(pair[f"{phase}_table"], sort_keys=False)
        else:
            row = found.row(row_id)
            about = (
                f"# {row['hw']}, batch {row['batch']}, chunk {row['chunk']}, {row['weights']} weights; row {row['id']}"
            )
            text = layout_yaml(_layout(row))
        text = f"{about}\n{text}"
        if output is None:
            typer.echo(text, nl=False)
        else:
            output.write_text(text, "utf-8")


def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="[default: report.html in the folder]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a sweep as one HTML file: the Pareto plot, details on hover, filters, layouts drawn on their devices.

    \b
    Examples:
      distaff sweep report run
      distaff sweep report run -o report.html
    """
    with reporting(debug):
        from ..sharding.sweep.page import page
        from ..sharding.sweep.store import load

        path = output or folder / "report.html"
        path.write_text(page(load(folder)), "utf-8")
        typer.echo(str(path))


def _layout(row: dict[str, Any]) -> "Layout":
    from ..sharding.presets import preset

    return preset(row["preset"], row["mesh"])


def _found(folder: Path, row_id: str, offline: bool) -> "tuple[SweepRequest, dict[str, Any], Layout, Slice]":
    """A stored row with what it was about."""
    from ..sharding.sweep.store import load

    found = load(folder)
    row = found.row(row_id)
    request = request_of(found, offline=offline)
    (on,) = (each for each in request.slices if each.name == row["hw"])
    return request, row, _layout(row), on
