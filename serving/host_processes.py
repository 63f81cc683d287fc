"""Hosts whose devices tell each other things by a library of their own, and not by JAX."""

from ..backends.processes import OfProcesses
from ..sharding.multihost import free_port
from .host_link import Link


def meet_processes(backend: OfProcesses, link: Link) -> None:
    """Has every host's device find the others, by a port that host 0 chooses.

    Raises:
        UnsupportedError: they did not find each other.
        HostsError: a host is lost.
    """
    hosts = link.hosts
    port = link.told("port of the devices", free_port() if hosts.leads else None)
    link.wait(
        lambda: backend.meet(hosts.address[0], port, rank=hosts.index, count=hosts.count, timeout=hosts.timeout)
    )  # fmt: skip
