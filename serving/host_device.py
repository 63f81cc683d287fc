"""One host plans, all compute: what host 0 asks of its device is sent to the others first, who do the same.

Everything that touches the devices goes through Device, or SharedDevice for replicas that step together, so this is the
only place that knows of several hosts: every process has the same compiled programs, and calls them in the same order
with the same arrays.
"""

from collections.abc import Sequence as Row
from contextlib import suppress
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ..backends.base import CacheGroup
from ..backends.errors import UsageError
from ..models.step import StepBatch, StepOutput
from ..sharding.multihost import HostsError
from .host_link import Link
from .plan import Bucket
from .programs import Programs
from .replica_device import Admitted, Copies
from .replicated import ReplicatedPrograms


class Fetched:
    """A StepOutput whose parts are waited for when somebody asks, and no longer when a host is lost."""

    def __init__(self, output: StepOutput, link: Link) -> None:
        self._output, self._link = output, link

    @cached_property
    def tokens(self) -> Any:
        return self._link.wait(lambda: np.asarray(self._output.tokens))

    @cached_property
    def logprobs(self) -> Any:
        return self._link.wait(lambda: jax.tree.map(np.asarray, self._output.logprobs))

    @cached_property
    def prompt(self) -> Any:
        return self._link.wait(lambda: jax.tree.map(np.asarray, self._output.prompt))

    @cached_property
    def expert_load(self) -> Any:
        return self._link.wait(lambda: jax.tree.map(np.asarray, self._output.expert_load))


class _Hosted:
    """Programs that every host has; what host 0 calls, all call.

    Args:
        programs: of this host.
        link: to the others.
    """

    def __init__(self, programs: Programs, link: Link) -> None:
        self._programs, self._link = programs, link
        self.num_slots, self.max_len = programs.num_slots, programs.max_len
        self.page_size, self.num_pages, self.groups = programs.page_size, programs.num_pages, programs.groups
        self.replicas = programs.replicas

    groups: tuple[CacheGroup, ...]

    @property
    def compile_seconds(self) -> float:
        return self._programs.compile_seconds

    @property
    def is_warm(self) -> bool:
        return self._programs.is_warm

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return self._programs.buckets

    def warm_up(self) -> None:
        """Compiles everything on every host."""
        self._everywhere("warm_up")
        self._link.gather("warm")

    def reset(self) -> None:
        """
        Raises:
            HostsError: always. After a failure nobody knows what the other hosts have computed.
        """
        self._link.check()
        message = "a step over several hosts failed, and the others may wait for it forever: start the job again"
        raise HostsError(message)

    def close(self) -> None:
        """On every host. The hosts stay joined."""
        with suppress(HostsError):  # they close by themselves
            self._link.send("close")
        self._programs.close()

    def _everywhere(self, name: str, *arguments: Any) -> Any:
        """Calls a method of the programs on every host; what this host's returns."""
        self._link.send(name, [_written(each) for each in arguments])
        try:
            return getattr(self._programs, name)(*arguments)
        except Exception as error:
            raise self._link.reason(error) from error


class LeadingDevice(_Hosted):
    """The programs of host 0 as a Device; the others follow."""

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, np.ndarray]]) -> None:
        self._everywhere("admit", slots, histories, rows)

    def copy_pages(self, copies: Copies) -> None:
        self._everywhere("copy_pages", copies)

    def step(self, bucket: Bucket, batch: StepBatch) -> Fetched:
        return Fetched(self._everywhere("step", bucket, batch), self._link)


class LeadingReplicas(_Hosted):
    """The programs of host 0 as the SharedDevice of replicas that step together; the others follow."""

    def admit_all(self, admitted: Row[Admitted]) -> None:
        self._everywhere("admit_all", list(admitted))

    def copy_all(self, copies: Row[Copies]) -> None:
        self._everywhere("copy_all", list(copies))

    def step_all(self, bucket: Bucket, batches: Row[StepBatch]) -> Fetched:
        return Fetched(self._everywhere("step_all", bucket, list(batches)), self._link)


class Follower(_Hosted):
    """The programs of another host: they do what host 0 says, and nothing else.

    An engine on it fails every request.
    """

    _CALLS = ("admit", "copy_pages", "step", "admit_all", "copy_all", "step_all", "warm_up")

    def warm_up(self) -> None:
        self._refuse()

    def close(self) -> None:
        self._programs.close()

    def follow(self) -> None:
        """Does what host 0 does, until it closes.

        Raises:
            HostsError: a host is lost.
        """
        try:
            while (message := self._link.receive())[0] not in ("close", "end"):
                self._do(*message)
        except Exception as error:
            raised = self._link.reason(error)
            self._link.fail(raised)
            raise raised from error
        self.close()

    def _do(self, name: str, arguments: Any) -> None:
        if name not in self._CALLS:
            raise HostsError(f"host 0 sent {name!r}, which this version does not know")
        getattr(self._programs, name)(*map(_read, arguments))
        if name == "warm_up":
            self._link.send("warm")

    def _everywhere(self, name: str, *arguments: Any) -> Any:
        self._refuse()

    def _refuse(self) -> None:
        hosts = self._link.hosts
        raise UsageError(f"this is {hosts.title(hosts.index)}: requests go to host 0; call follow() here")


class FollowingDevice(Follower, LeadingDevice):
    """A Device of another host."""


class FollowingReplicas(Follower, LeadingReplicas):
    """A SharedDevice of another host."""


def hosted(programs: Programs, link: Link) -> LeadingDevice | LeadingReplicas:
    """The programs of this host as what an engine, or several in one program, run on."""
    leads = link.hosts.leads
    if isinstance(programs, ReplicatedPrograms):
        return (LeadingReplicas if leads else FollowingReplicas)(programs, link)
    return (LeadingDevice if leads else FollowingDevice)(programs, link)


def _written(value: Any) -> Any:
    """An argument as messages can have it: buckets and batches as what they hold, texts as arrays."""
    if isinstance(value, Bucket):
        return {"bucket": (value.num_tokens, value.num_rows, value.kind)}
    if isinstance(value, StepBatch):
        assert value.token_mask is None and value.adapter_ids is None
        arrays = (value.slots, value.query_starts, value.kv_lens, value.page_tables, value.draws, value.num_steps)
        return {"batch": arrays}
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return {"numbers": np.asarray(value, np.int32)}
    if isinstance(value, list | tuple):
        return type(value)(map(_written, value))
    return value


def _read(value: Any) -> Any:
    """What `_written` has written."""
    match value:
        case {"bucket": fields}:
            return Bucket(*fields)
        case {"batch": arrays}:
            return StepBatch(*arrays)
        case {"numbers": numbers}:
            return numbers.tolist()
        case list() | tuple():
            return type(value)(map(_read, value))
        case _:
            return value
