"""`distaff doctor`: what this machine has, and what is wrong with it."""

from typing import Annotated

import typer

from .options import Debug, Json
from .output import print_json
from .reporting import FAILURE, reporting
from .startup import prepare_devices


def doctor(
    network: Annotated[bool, typer.Option("--network", help="Also ask the model hub whether it answers.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Report Python, packages, devices, memory and caches, and what is wrong with them.

    Each finding is ok, a note, or wrong; what is wrong comes with a line on how to mend it.
    Exits with 1 if anything is wrong.

    \b
    Examples:
      distaff doctor
      distaff doctor --network --json
    """
    with reporting(debug):
        prepare_devices()
        from .checks import Status, run_checks

        findings = run_checks(network=network)
        broken = any(finding.status is Status.WRONG for finding in findings)
        if json:
            print_json({"ok": not broken, "checks": [finding.to_dict() for finding in findings]})
        else:
            width = max(len(finding.name) for finding in findings)
            for finding in findings:
                typer.echo(f"{finding.status.value:5}  {finding.name.ljust(width)}  {finding.found}")
                if finding.remedy:
                    typer.echo(f"{'':5}  {'':{width}}  -> {finding.remedy}")
        if broken:
            raise typer.Exit(FAILURE)
