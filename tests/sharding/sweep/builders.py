"""Builders of compile jobs that go wrong."""

import os
import time
from typing import NoReturn


def crash(**_: object) -> NoReturn:
    """As a compiler that fails one of its own checks."""
    os.abort()


def hang(**_: object) -> None:
    """As a compiler that never ends."""
    time.sleep(600)


def refuse(**_: object) -> NoReturn:
    """As tracing that fails."""
    raise ValueError("no such thing")
