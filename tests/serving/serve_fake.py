"""A server over the fake model in a process of its own.

    python -m tests.serving.serve_fake [STEP_SECONDS [GRACE [QUICK]]]

With QUICK (1) the model costs next to nothing, so that a load generator measures the server alone.
"""

import sys

from distaff.serving.front import Front
from distaff.serving.rpc.settings import RpcSettings
from distaff.serving.serve import Ports, ServeSettings, run_server

from .served import make_served


def main(step_seconds: float = 0.0, grace: float = 30.0, quick: float = 0.0) -> int:
    def make_front() -> Front:
        served = make_served(slots=64, pages=65_536, max_len=4096, quick=bool(quick))
        served.programs.step_seconds = step_seconds
        return served.front

    def on_ready(ports: Ports) -> None:
        print(f"ready {ports.grpc} {ports.http}", flush=True)

    return run_server(make_front, ServeSettings(rpc=RpcSettings(port=0), http_port=0, grace=grace), on_ready)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
