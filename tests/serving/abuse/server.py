"""A server over the fake model in a process of its own, so that its memory and file descriptors can be counted.

    python -m tests.serving.abuse.server '{"engine": {...}, "limits": {...}, "settings": {...}, "step_seconds": 0}'

Prints {"port": ...} when it serves. Each line on stdin is answered by a line of counts; the end of stdin ends it.
"""

import asyncio
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil

from distaff.serving.front import FrontLimits
from distaff.serving.rpc.server import RpcServer
from distaff.serving.rpc.settings import RpcSettings

from ..served import Served, serving


def counts(served: Served) -> dict[str, Any]:
    gc.collect()
    process = psutil.Process()
    times = process.cpu_times()
    return {
        "streams": served.front.load().streams,
        "slots": served.used_slots,
        "pages": served.used_pages,
        "requests": served.engine.num_requests,
        "tokens_in_flight": served.front.load().tokens_in_flight,
        "stalled": served.front.counters.stalled,
        "preemptions": served.engine.metrics.preemptions,
        "fds": len(list(Path(f"/proc/{os.getpid()}/fd").iterdir())),
        "threads": process.num_threads(),
        "memory": process.memory_info().rss,
        "cpu": times.user + times.system,
    }


async def serve(options: dict[str, Any]) -> None:
    async with serving(limits=FrontLimits(**options.get("limits", {})), **options.get("engine", {})) as served:
        served.programs.step_seconds = options.get("step_seconds", 0.0)
        server = RpcServer(served.front, RpcSettings(port=0, **options.get("settings", {})))
        await server.start()
        print(json.dumps({"port": server.port}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(counts(served)), flush=True)
        await server.stop()
        await served.check_empty()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))
