"""Which hosts there are, as Cloud TPU and Kubernetes say it."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from ..backends.errors import UsageError
from .multihost import DEFAULT_TIMEOUT, Hosts

PORT = 8470
"""Where host 0 listens when nobody says otherwise."""
_METADATA_SECONDS = 2.0


def detect_hosts(
    environment: Mapping[str, str] | None = None,
    *,
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Hosts:
    """Reads the variables of GKE's TPU pods, then those of a JobSet, then a TPU VM's metadata server.

    Args:
        environment: None takes that of the process.
        coordinator, count, index: what is given counts, whatever is found.
        timeout: as in Hosts.

    Raises:
        UsageError: something is missing; the message says what, and where it was looked for.
        InvalidParameterError: what was found is no group of hosts.
    """
    environment = os.environ if environment is None else environment
    found = _gke(environment) or _jobset(environment)
    if found is None and None in (coordinator, count, index):
        found = _metadata(environment)
    where, names, found_count, found_index, leader = found or ("nothing", (), None, None, None)
    if coordinator is None and leader is not None:
        coordinator = leader if ":" in leader else f"{leader}:{PORT}"
    count = found_count if count is None else count
    index = found_index if index is None else index
    missing = [
        flag
        for flag, value in (("--coordinator", coordinator), ("--num-hosts", count), ("--host", index))
        if value is None
    ]
    if coordinator is None or count is None or index is None:
        told = "nothing says which hosts there are" if found is None else f"{where} does not tell everything"
        raise UsageError(
            f"--hosts auto: {told}; looked for TPU_WORKER_HOSTNAMES with TPU_WORKER_ID, for JOBSET_NAME with "
            f"JOB_COMPLETION_INDEX, and for the metadata server of a TPU VM; give {', '.join(missing)}"
        )
    return Hosts(coordinator, count, index, timeout, names if len(names) == count else ())


type _Found = tuple[str, tuple[str, ...], int | None, int | None, str | None]
"""Where, addresses, how many, which one this is, and the first one's address."""


def _gke(environment: Mapping[str, str]) -> _Found | None:
    """Variables of a TPU pod in GKE; MEGASCALE_* where several slices work together."""
    path = environment.get("TPU_PROCESS_ADDRESSES_PATH")
    text = Path(path).read_text() if path else environment.get("TPU_PROCESS_ADDRESSES")
    text = text or environment.get("TPU_WORKER_HOSTNAMES")
    worker = environment.get("TPU_WORKER_ID")
    if not text or worker is None:
        return None
    names = tuple(name.strip().split(":")[0] for name in text.split(","))
    slices, number = (int(environment.get(f"MEGASCALE_{key}") or default) for key, default in _SLICES)
    leader = (environment.get("MEGASCALE_COORDINATOR_ADDRESS") or names[0]).split(":")[0]
    return "TPU_WORKER_HOSTNAMES", names, len(names) * slices, number * len(names) + int(worker), leader


_SLICES = (("NUM_SLICES", 1), ("SLICE_ID", 0))


def _jobset(environment: Mapping[str, str]) -> _Found | None:
    """Kubernetes numbers the pods of a job; a JobSet gives each a name by which the others find it.

    JOBSET_NAME and REPLICATED_JOB_NAME come from the pod's labels, as JobSet's documentation shows.
    """
    index, jobset = environment.get("JOB_COMPLETION_INDEX"), environment.get("JOBSET_NAME")
    if index is None or jobset is None:
        return None
    job = environment.get("REPLICATED_JOB_NAME")
    number = environment.get("JOB_INDEX", "0")
    pods = environment.get("NUM_HOSTS") or environment.get("NUM_PROCESSES")
    count = None if pods is None else int(pods)
    names = tuple(f"{jobset}-{job}-{number}-{i}.{jobset}" for i in range(count or 1)) if job else ()
    return "JOBSET_NAME", names, count, int(index), names[0] if names else None


def _metadata(environment: Mapping[str, str]) -> _Found | None:
    """The metadata server of a TPU VM."""
    if environment.get("TPU_SKIP_MDS_QUERY"):
        return None
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def read(key: str) -> str | None:
        request = Request(
            f"http://{server}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"}
        )
        try:
            with urlopen(request, timeout=_METADATA_SECONDS) as answer:
                return answer.read().decode()
        except (URLError, OSError, ValueError):
            return None

    worker = read("agent-worker-number")
    endpoints = read("worker-network-endpoints") if worker is not None else None
    if worker is None or endpoints is None:
        return None
    # Names alone, or name:number:address of each.
    names = tuple(entry.split(":")[-1] for entry in endpoints.split(","))
    return f"the metadata server {server}", names, len(names), int(worker), names[0]
