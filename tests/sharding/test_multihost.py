"""Who the hosts are: from flags, from the variables of Cloud TPU and JobSet, and from a metadata server."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.scripts.startup import read_hosts
from distaff.sharding.errors import DevicesError
from distaff.sharding.multihost import Hosts, check_spread
from distaff.sharding.multihost_detect import PORT, detect_hosts
from distaff.sharding.parsing import parse_layout

NOWHERE = {"TPU_SKIP_MDS_QUERY": "1"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (("10.0.0.1", 2, 0), "coordinator is '10.0.0.1', expected HOST:PORT"),
        (("10.0.0.1:0", 2, 0), "coordinator"),
        (("a:1", 1, 0), "num_hosts is 1, expected at least 2"),
        (("a:1", 2, 2), "host is 2, expected 0 to 1"),
        (("a:1", 2, -1), "host is -1"),
        (("a:1", 2, 1, 0.0), "host_timeout is 0.0"),
    ],
)
def test_what_is_no_group_of_hosts_is_refused(fields: tuple[Any, ...], told: str) -> None:
    with pytest.raises(InvalidParameterError, match=told):
        Hosts(*fields)


def test_a_host_has_a_number_and_an_address() -> None:
    hosts = Hosts("[fd00::1]:80", 3, 1, names=("a", "b", "c"))
    assert hosts.address == ("fd00::1", 80) and not hosts.leads
    assert [hosts.title(i) for i in range(3)] == [
        "host 0 of 3 ([fd00::1]:80)", "host 1 of 3 (b)", "host 2 of 3 (c)",
    ]  # fmt: skip
    assert Hosts("a:1", 2, 0).title(1) == "host 1 of 2"


def test_flags_name_the_hosts() -> None:
    assert read_hosts(None, None, None, None, None, None) is None
    assert read_hosts(None, "a:1", 2, 1, 5, "tensor=2") == Hosts("a:1", 2, 1, 5)
    for flags, told in (
        ((None, "a:1", None, 1, None, "tensor=2"), "--num-hosts missing"),
        ((None, None, None, None, 5.0, "tensor=2"), "--coordinator, --num-hosts, --host missing"),
        ((None, "a:1", 2, 1, None, None), "need --layout"),
        (("two", "a:1", 2, 1, None, "tensor=2"), "expected auto"),
    ):
        with pytest.raises(UsageError, match=told):
            read_hosts(*flags)


def test_the_variables_of_a_tpu_pod() -> None:
    pod = {"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t", "TPU_WORKER_ID": "1"}
    assert detect_hosts(pod) == Hosts(f"t-0.t:{PORT}", 2, 1, names=("t-0.t", "t-1.t"))
    slices = {**pod, "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "s:8080"}
    assert detect_hosts(slices) == Hosts(f"s:{PORT}", 6, 5)
    assert detect_hosts(pod, coordinator="x:9", timeout=3) == Hosts("x:9", 2, 1, 3, ("t-0.t", "t-1.t"))


def test_the_variables_of_a_jobset() -> None:
    pod = {"JOBSET_NAME": "d", "REPLICATED_JOB_NAME": "w", "JOB_COMPLETION_INDEX": "2", **NOWHERE}
    names = tuple(f"d-w-0-{i}.d" for i in range(4))
    assert detect_hosts(pod, count=4) == Hosts(f"d-w-0-0.d:{PORT}", 4, 2)
    assert detect_hosts({**pod, "NUM_HOSTS": "4"}) == Hosts(f"d-w-0-0.d:{PORT}", 4, 2, names=names)
    with pytest.raises(UsageError, match=r"JOBSET_NAME does not tell everything.*give --num-hosts"):
        detect_hosts(pod)


def test_where_nothing_is_told_the_message_says_what_to_give() -> None:
    with pytest.raises(UsageError, match="give --coordinator, --num-hosts, --host"):
        detect_hosts(NOWHERE)
    assert detect_hosts(NOWHERE, coordinator="a:1", count=2, index=0) == Hosts("a:1", 2, 0)


@pytest.fixture
def metadata() -> Iterator[tuple[str, dict[str, str]]]:
    """A metadata server of this machine, and what it answers."""
    answers: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = answers.get(self.path.rsplit("/", 1)[1]) if self.headers["Metadata-Flavor"] == "Google" else None
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("endpoints", ["10.0.0.1,10.0.0.2", "w0:0:10.0.0.1,w1:1:10.0.0.2"])
def test_the_metadata_server_of_a_tpu_vm(metadata: tuple[str, dict[str, str]], endpoints: str) -> None:
    address, answers = metadata
    with pytest.raises(UsageError, match="nothing says"):
        detect_hosts({"GCE_METADATA_IP": address})
    answers.update({"agent-worker-number": "1", "worker-network-endpoints": endpoints})
    found = detect_hosts({"GCE_METADATA_IP": address})
    assert found == Hosts(f"10.0.0.1:{PORT}", 2, 1, names=("10.0.0.1", "10.0.0.2"))


def test_a_layout_uses_devices_of_every_host() -> None:
    hosts = Hosts("a:1", 2, 0)
    devices = [SimpleNamespace(process_index=i // 2) for i in range(4)]
    check_spread(parse_layout("tensor=4", num_devices=4), hosts, devices)
    check_spread(parse_layout("tensor=3", num_devices=4), hosts, devices)
    with pytest.raises(DevicesError, match="leaves 1 of the hosts without work"):
        check_spread(parse_layout("tensor=2", num_devices=4), hosts, devices)
    with pytest.raises(DevicesError, match="devices of 1 of them are visible"):
        check_spread(parse_layout("tensor=2", num_devices=2), hosts, devices[:2])
    check_spread(parse_layout("data=2,tensor=2", num_devices=4), hosts, devices)
