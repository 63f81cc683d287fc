"""`distaff backends`: what can compute here, and what each operation would run on."""

from typing import TYPE_CHECKING, Any

import typer

from .options import Debug, Json
from .output import print_json, size_text
from .reporting import reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..backends.base import Backend


def backends(json: Json = False, debug: Debug = False) -> None:
    """List the backends: which are available, and why the others are not.

    In the order in which `--backend auto` tries them. `distaff generate`, `serve`, `batch` and `bench offline`
    take a name after --backend.

    \b
    Examples:
      distaff backends
      distaff backends --json

    \b
    --json prints one object: chosen (what auto takes) and backends, each with name, available, reason
    (why not), devices, memory (bytes: total, free), kernels (operation -> what runs it) and capabilities.
    """
    with reporting(debug):
        prepare_devices()
        rows = survey()
        chosen = next((row["name"] for row in rows if row["available"]), None)
        if json:
            print_json({"chosen": chosen, "backends": rows})
            return
        for row in rows:
            _print(row, chosen=row["name"] == chosen)


def survey() -> list[dict[str, Any]]:
    """What each backend says of itself, or why it declines."""
    from ..backends.errors import UnsupportedError
    from ..backends.select import CANDIDATES

    rows: list[dict[str, Any]] = []
    for name, build in CANDIDATES.items():
        try:
            rows.append({"name": name, "available": True, "reason": None, **_facts(build())})
        except UnsupportedError as error:
            rows.append({"name": name, "available": False, "reason": str(error)})
    return rows


def _facts(backend: "Backend") -> dict[str, Any]:
    from dataclasses import asdict

    import jax

    return {
        "devices": [device.device_kind for device in jax.devices()],
        "memory": asdict(backend.memory()),
        "page_size": backend.page_size,
        "kernels": dict(backend.kernels),
        "compiler_options": dict(backend.compiler_options),
        "capabilities": asdict(backend.capabilities),
    }


def _print(row: dict[str, Any], *, chosen: bool) -> None:
    if not row["available"]:
        typer.echo(f"{row['name']}: not available\n  {row['reason']}\n")
        return
    memory, can = row["memory"], row["capabilities"]
    kinds = ", ".join(f"{row['devices'].count(kind)} x {kind}" for kind in dict.fromkeys(row["devices"]))
    lines = [
        f"{row['name']}: available{', chosen by auto' if chosen else ''}",
        f"  devices   {kinds}",
        f"  memory    {size_text(memory['free'])} free of {size_text(memory['total'])}",
        f"  types     {', '.join(can['dtypes'])}; KV cache {', '.join(can['kv_dtypes'])}; pages of {row['page_size']}",
    ]
    width = max(map(len, row["kernels"]))
    lines += [f"  {operation.ljust(width)}  {kernel}" for operation, kernel in row["kernels"].items()]
    typer.echo("\n".join(lines) + "\n")
