"""One host plans, all compute: what host 0 asks of its device is sent to the others first, who do the same.

Everything that touches the devices goes through Device, so this is the only place that knows of several hosts: every
process has the same compiled programs, and calls them in the same order with the same arrays.
"""

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


class LeadingDevice:
    """The programs of host 0 as a Device; the others follow.

    Args:
        programs: of this host.
        link: to the others.
    """

    def __init__(self, programs: Programs, link: Link) -> None:
        self._programs, self._link = programs, link
        self.num_slots, self.max_len = programs.num_slots, programs.max_len
        self.page_size, self.num_pages, self.groups = programs.page_size, programs.num_pages, programs.groups

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

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, np.ndarray]]) -> None:
        self._link.send("admit", [slots, [np.asarray(text, np.int32) for text in histories], rows])
        self._local(self._programs.admit, slots, histories, rows)

    def copy_pages(self, copies: tuple[list[tuple[int, int]], ...]) -> None:
        self._link.send("copy", copies)
        self._local(self._programs.copy_pages, copies)

    def step(self, bucket: Bucket, batch: StepBatch) -> Fetched:
        assert batch.token_mask is None and batch.adapter_ids is None
        arrays = (batch.slots, batch.query_starts, batch.kv_lens, batch.page_tables, batch.draws, batch.num_steps)
        self._link.send("step", [(bucket.num_tokens, bucket.num_rows, bucket.kind), arrays])
        return Fetched(self._local(self._programs.step, bucket, batch), self._link)

    def warm_up(self) -> None:
        """Compiles everything on every host."""
        self._link.send("warm_up")
        self._local(self._programs.warm_up)
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

    def _local(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise self._link.reason(error) from error


class FollowingDevice(LeadingDevice):
    """The programs of another host: they do what host 0 says, and nothing else.

    An engine on it fails every request.
    """

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, np.ndarray]]) -> None:
        self._refuse()

    def copy_pages(self, copies: tuple[list[tuple[int, int]], ...]) -> None:
        self._refuse()

    def step(self, bucket: Bucket, batch: StepBatch) -> Fetched:
        return self._refuse()

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

    def _do(self, name: str, value: Any) -> None:
        if name == "step":
            bucket, arrays = value
            self._programs.step(Bucket(*bucket), StepBatch(*arrays))
        elif name == "admit":
            slots, histories, rows = value
            self._programs.admit(slots, [text.tolist() for text in histories], rows)
        elif name == "copy":
            self._programs.copy_pages(value)
        elif name == "warm_up":
            self._programs.warm_up()
            self._link.send("warm")
        else:
            raise HostsError(f"host 0 sent {name!r}, which this version does not know")

    def _refuse(self) -> Any:
        hosts = self._link.hosts
        raise UsageError(f"this is {hosts.title(hosts.index)}: requests go to host 0; call follow() here")
