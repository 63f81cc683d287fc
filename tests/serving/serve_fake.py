"""A server over the fake model in a process of its own.

    python -m tests.serving.serve_fake ['{"step_seconds": 0.01, "grace": 30, "port": 0, "quick": false, "limits": {}}']

Prints "ready GRPC_PORT HTTP_PORT". With `quick` the model costs next to nothing, so that a load generator measures the
server alone; `limits` are FrontLimits.
"""

import json
import sys
from typing import Any

from distaff.serving.front import Front, FrontLimits
from distaff.serving.rpc.settings import RpcSettings
from distaff.serving.serve import Ports, ServeSettings, run_server

from .served import QuickPrograms, SlowPrograms, make_served


def main(
    step_seconds: float = 0.0,
    grace: float = 30.0,
    port: int = 0,
    quick: bool = False,
    limits: dict[str, Any] | None = None,
) -> int:
    def make_front() -> Front:
        programs = QuickPrograms if quick else SlowPrograms
        many = FrontLimits(**{"max_buffered_events": 1000, **(limits or {})})
        served = make_served(slots=64, pages=65_536, max_len=4096, programs=programs, limits=many)
        served.programs.step_seconds = step_seconds
        return served.front

    def on_ready(ports: Ports) -> None:
        print(f"ready {ports.grpc} {ports.http}", flush=True)

    return run_server(make_front, ServeSettings(rpc=RpcSettings(port=port), http_port=0, grace=grace), on_ready)


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
