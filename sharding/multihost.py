"""Several hosts, one process on each, that run one model together: who they are, and JAX across them."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..backends.errors import DistaffError, InvalidParameterError, UsageError
from .errors import DevicesError
from .layout import Layout

DEFAULT_TIMEOUT = 60.0
"""Seconds that a host may take to come, and later may be silent."""
_PATIENCE = 10
"""JAX's own limit, in limits of ours: its way to end a process is to abort it, so that ours has to come first."""


class HostsError(DistaffError):
    """Several hosts cannot work together, or no longer."""


class MissingHostError(HostsError):
    """A host did not come in time."""


class LostHostError(HostsError):
    """A host that took part has gone, is silent, or has failed."""


@dataclass(frozen=True)
class Hosts:
    """The hosts of a job as one of them sees them.

    Args:
        coordinator: HOST:PORT, where host 0 listens; it takes the requests and plans every step.
        count: how many there are.
        index: which one this is, from 0.
        timeout: seconds to wait for the others at the start, and to notice later that one is gone.
        names: their addresses, where they are known in advance.

    Raises:
        InvalidParameterError: no HOST:PORT, fewer than two hosts, an index that is none of theirs, no time.
    """

    coordinator: str
    count: int
    index: int
    timeout: float = DEFAULT_TIMEOUT
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidParameterError("coordinator", self.coordinator, "HOST:PORT of host 0, such as 10.0.0.1:8470")
        if self.count < 2:
            raise InvalidParameterError("num_hosts", self.count, "at least 2")
        if not 0 <= self.index < self.count:
            raise InvalidParameterError(
                "host", self.index, f"0 to {self.count - 1}, since there are {self.count} hosts"
            )
        if self.timeout <= 0:
            raise InvalidParameterError("host_timeout", self.timeout, "seconds above 0")

    @property
    def leads(self) -> bool:
        """Whether this host takes the requests."""
        return self.index == 0

    @property
    def address(self) -> tuple[str, int]:
        """Where host 0 listens."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def title(self, index: int, address: str | None = None) -> str:
        """A host for people: its number and, where it is known, its address."""
        known = self.coordinator if index == 0 else self.names[index] if index < len(self.names) else address
        return f"host {index} of {self.count}" + (f" ({known})" if known else "")


def free_port() -> int:
    """A port of this machine alone that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_jax(hosts: Hosts, port: int) -> None:
    """Makes the devices of all hosts visible in each; returns once all have called it. SIGTERM stays this process'.

    Args:
        hosts: who takes part.
        port: of this machine, where JAX's coordination service is, or is brought to.

    Raises:
        UsageError: JAX has looked for devices before.
        HostsError: JAX did not find the others.
    """
    # JAX's handler of SIGTERM takes the place of whatever there is, and notes a signal that nobody here asks it about.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            hosts.count,
            hosts.index,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, round(hosts.timeout)),
            heartbeat_timeout_seconds=max(10, round(hosts.timeout * _PATIENCE)),
            shutdown_timeout_seconds=max(1, round(hosts.timeout / 2)),
            coordinator_bind_address=f"127.0.0.1:{port}",
        )
    except RuntimeError as error:
        if "must be called before" in str(error) or "only be called once" in str(error):
            raise UsageError(
                "hosts: JAX has been used in this process before; several hosts have to be joined first"
            ) from error
        raise HostsError(f"{hosts.title(hosts.index)}: JAX did not start ({error})") from error


def check_spread(layout: Layout, hosts: Hosts, devices: Sequence[Any]) -> None:
    """
    Args:
        layout: of the model.
        hosts: who takes part.
        devices: all of them, in the order of JAX.

    Raises:
        DevicesError: a host has no device, or none that the layout uses.
    """
    processes = {device.process_index for device in devices}
    if len(processes) != hosts.count:
        raise DevicesError(
            f"{hosts.count} hosts, but devices of {len(processes)} of them are visible: every host needs at least one, "
            "and the chips of a slice have to be started on all its hosts"
        )
    used = {device.process_index for device in devices[: layout.num_devices]}
    if used != processes:
        raise DevicesError(
            f"layout {layout}: takes {layout.num_devices} of the {len(devices)} devices of {hosts.count} hosts, and "
            f"leaves {len(processes - used)} of the hosts without work; use all devices, or fewer hosts"
        )
