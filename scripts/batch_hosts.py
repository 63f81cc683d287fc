"""`distaff batch` on several hosts: the first reads and writes, all compute, and all stop when one is asked to."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import typer

from .progress import ProgressDisplay

if TYPE_CHECKING:
    from ..serving.batch_jobs.stop import StopSignals
    from ..sharding.multihost import Hosts


def is_complete(output: str) -> bool:
    """On a host that is not the first, and that may not see where host 0 writes: whether nothing is left to be done."""
    from ..serving.batch_jobs.errors import OutputError
    from ..serving.batch_jobs.job import open_store

    try:
        return open_store(output).read_manifest() is not None
    except OutputError:
        return False


def follow(model: str, options: Mapping[str, Any]) -> None:
    """On a host that is not the first: computes what host 0 plans."""
    from ..serving import LLM
    from ..serving.batch_jobs.stop import StopSignals

    with StopSignals() as signals, stopping_together(options["hosts"], signals):
        with ProgressDisplay(model) as display:
            llm = LLM(model, on_progress=display, **options)
        llm.follow()


@contextmanager
def stopping_together(hosts: "Hosts | None", signals: "StopSignals") -> Iterator[ExitStack]:
    """Joins the other hosts. Whichever is asked to stop asks the others; host 0 then ends the job in order, and all end
    with the exit code of a job that stopped. When one fails the others hear why.

    Yields:
        What is to be closed at the end, when the others know how it came.

    Raises:
        JobStoppedError: all of them were asked to stop.
    """
    if hosts is None:
        with ExitStack() as ending:
            yield ending
        return
    from ..serving.batch_jobs.errors import JobStoppedError
    from ..serving.errors import DeviceError
    from ..serving.host_join import join
    from ..sharding.multihost import HostsError

    link = join(hosts)

    def ask_others() -> None:
        link.exit_code = JobStoppedError.exit_code
        link.ask_to_stop()

    signals.tell(ask_others)
    link.when_asked_to_stop(signals.ask)
    stopped = JobStoppedError("stopped; host 0 has what was answered, and --resume on every host goes on")
    with ExitStack() as ending:
        try:
            yield ending
        except JobStoppedError:  # asked, or its disk is full
            ask_others()
            raise
        except typer.Exit:  # how the whole job came out
            raise
        except Exception as error:
            if signals.asked and isinstance(error, HostsError | DeviceError):  # another one was at its end before
                raise stopped from error
            link.fail(error)
            raise
    if signals.asked and not hosts.leads:
        raise stopped
