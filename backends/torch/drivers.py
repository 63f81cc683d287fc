"""What reaches each kind of torch device: one file for each, so that a successor is one more."""

from collections.abc import Callable
from functools import cache
from importlib import import_module

from ..errors import UnsupportedError
from .driver import Driver

__all__ = ["DRIVERS", "Driver", "driver_for"]


def _maker(name: str) -> Callable[[], Driver]:
    return lambda: import_module(f".driver_{name}", __package__).make()


DRIVERS: dict[str, Callable[[], Driver]] = {name: _maker(name) for name in ("cpu", "xla", "hpu")}
"""Makers by the name behind `torch:`; each raises UnsupportedError where its device cannot be reached."""


@cache
def driver_for(device: str) -> Driver:
    """The driver of a device, made once for a process.

    Raises:
        UnsupportedError: there is no such driver, or it declines.
    """
    if device not in DRIVERS:
        raise UnsupportedError(f"backend torch:{device}: unknown, expected one of {', '.join(DRIVERS)} behind torch:")
    return DRIVERS[device]()
