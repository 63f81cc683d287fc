"""`scripts/verify_device`: is every kernel right on this device, and how near does it come to the limits?"""

import platform
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Backend, Debug
from .reporting import FAILURE, reporting
from .startup import prepare_devices

_PACKAGES = ("distaff", "jax", "jaxlib", "torch", "torch_xla")

if TYPE_CHECKING:
    from ..backends.base import Backend as BackendProtocol
    from .device_checks import Check


def verify_device(
    backend: Backend = "auto",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the report goes, as JSON.")] = Path(
        "verify_device.json"
    ),
    debug: Debug = False,
) -> None:
    """Check a backend on the device that is here, and write a report.

    Every kernel is compared with the reference in fp32, an engine's tokens with the reference's, compilations are
    counted, and speeds are put beside the limits of the machine. Meant for a machine with a TPU or a GPU; it runs
    on a CPU too. Exits with 1 if anything differs by more than its bound.

    \b
    Examples:
      scripts/verify_device
      scripts/verify_device --backend tpu --out tpu-v6e.json
      scripts/verify_device --backend torch:hpu --out gaudi.json
    """
    with reporting(debug):
        prepare_devices()
        import json
        from importlib.util import find_spec

        import jax

        from ..backends.select import select_backend

        chosen = select_backend(backend)
        devices = [device.device_kind for device in jax.devices()]
        if chosen.name.startswith("torch:"):  # which are not JAX's
            devices = [chosen.kernels["dense_attention"]]
        typer.echo(f"backend {chosen.name} on {len(devices)} x {devices[0]}")
        checks: list[Check] = []
        for check in _run(chosen):
            checks.append(check)
            typer.echo(f"{'ok   ' if check.passed else 'WRONG'}  {check.name}: {check.found}")
        report = {
            "backend": chosen.name,
            "kernels": dict(chosen.kernels),
            "devices": devices,
            "versions": {name: version(name) for name in _PACKAGES if find_spec(name) is not None},
            "system": platform.platform(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "checks": [asdict(check) for check in checks],
        }
        out.write_text(json.dumps(report, indent=1) + "\n")
        wrong = sum(not check.passed for check in checks)
        typer.echo(f"{len(checks) - wrong} of {len(checks)} checks passed; the report is in {out}")
        if wrong:
            raise typer.Exit(FAILURE)


def _run(backend: "BackendProtocol") -> "Iterator[Check]":
    from ..serving.limits import measure_limits
    from . import device_checks

    dtypes = [dtype for dtype in device_checks.BOUNDS if dtype in backend.capabilities.dtypes]
    for dtype in dtypes:
        yield from device_checks.attention(backend, dtype)
        yield from device_checks.products(backend, dtype)
    yield from device_checks.engine(backend)
    yield from device_checks.speed(backend, dtypes[-1], measure_limits(backend, dtypes[-1]))


def main() -> None:
    """The program behind scripts/verify_device."""
    typer.run(verify_device)


if __name__ == "__main__":
    main()
