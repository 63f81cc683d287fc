"""Traces of what the devices do, for XProf."""

import time
from pathlib import Path

import jax

from ..front import NotPossibleError


class Profiler:
    """One trace at a time, below a folder of the server's.

    Args:
        folder: None: none are made.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._running = False

    def start(self) -> None:
        """
        Raises:
            NotPossibleError: there is no folder for traces, or one is being made.
        """
        if self._folder is None:
            raise NotPossibleError("the server was started without --profile-dir, so it records nothing")
        if self._running:
            raise NotPossibleError("a trace is being recorded: stop it first")
        jax.profiler.start_trace(str(self._folder / time.strftime("%Y%m%d-%H%M%S")))
        self._running = True

    def stop(self) -> None:
        """
        Raises:
            NotPossibleError: none is being made.
        """
        if not self._running:
            raise NotPossibleError("no trace is being recorded")
        self._running = False
        jax.profiler.stop_trace()
