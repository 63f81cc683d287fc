"""One of several local hosts: serves six requests, prints their tokens, and goes on until it is ended; or serves them
once, and prints what a text scores and its vector.

Arguments: which host, how many there are, the port of host 0, devices of this process, layout, "once" or "on", and how
weights are rounded, if they are.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Every process compiles for itself, and what comes of it runs a few times: LLVM need not optimise it.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[4]} --xla_backend_optimization_level=0"

from distaff.serving.engine_config import EngineConfig
from distaff.serving.llm import LLM
from distaff.serving.results import Completion
from distaff.serving.types import Request, SamplingParams
from distaff.sharding.multihost import Hosts

MODEL = Path(__file__).parent.parent / "golden" / "llama31"
TIMEOUT = 16.0


def main(index: int, count: int, port: int, layout: str, mode: str, quantize: str | None = None) -> None:
    hosts = Hosts(f"127.0.0.1:{port}", count, index, TIMEOUT) if count > 1 else None
    # One shape for every step: few programs, since processes compile each for itself.
    settings = {"context": 64, "max_batch": 3, "max_step_tokens": 16, "deterministic": True}
    assert EngineConfig(**settings)
    llm = LLM(MODEL, backend="reference", layout=layout, hosts=hosts, quantize=quantize, **settings)
    if llm.follows:
        llm.follow()
        return
    ids = [(7 * i * i + 3 * i) % 90 for i in range(60)]
    prompts = [ids[:20], ids[:33], ids[40:43], ids[:25], ids[:33], ids[7:24]]
    params = SamplingParams(max_tokens=8, temperature=0)
    while True:
        results = llm.engine.generate([Request(tuple(prompt), params) for prompt in prompts])
        print(json.dumps([result.token_ids for result in results if isinstance(result, Completion)]), flush=True)
        if mode == "once":
            break
    (score,), (vector,) = llm.score([prompts[1]]), llm.embed([prompts[1]])
    print(json.dumps([score.logprobs.logprobs.tolist(), vector.vector.tolist()]), flush=True)
    llm.close()


main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[5:])
