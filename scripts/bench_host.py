"""`distaff bench host`: what scheduling costs, with a device that computes nothing."""

import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Debug, Json
from .output import print_json
from .reporting import reporting
from .startup import prepare_devices

if TYPE_CHECKING:
    from ..serving.runner import Device

_VOCAB = 32_000
_PAGE = 16


def bench_host(
    running: Annotated[int, typer.Option("--running", help="Sequences that run at once.", metavar="N", min=1)] = 256,
    steps: Annotated[int, typer.Option("--steps", help="Steps to time.", metavar="N", min=1)] = 500,
    decode_steps: Annotated[
        int, typer.Option("--decode-steps", help="Tokens of each row in one call.", metavar="N", min=1)
    ] = 1,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the engine's own work in a step: scheduling, arrays, handing tokens on.

    The device answers at once with the same token, so that nothing but the engine is left.

    \b
    Examples:
      distaff bench host
      distaff bench host --running 64 --decode-steps 8 --json

    \b
    --json prints one object:
      running, steps, decode_steps, host_ms_per_step (mean), p50_ms, p99_ms, steps_per_s, tokens_per_s
    """
    with reporting(debug):
        prepare_devices()
        times = _measure(running, steps, decode_steps)
        mean = statistics.fmean(times)
        report = {
            "running": running,
            "steps": len(times),
            "decode_steps": decode_steps,
            "host_ms_per_step": mean * 1e3,
            "p50_ms": statistics.median(times) * 1e3,
            "p99_ms": statistics.quantiles(times, n=100)[98] * 1e3 if len(times) > 1 else times[0] * 1e3,
            "steps_per_s": 1 / mean,
            "tokens_per_s": running * decode_steps / mean,
        }
        if json:
            print_json({name: round(value, 4) for name, value in report.items()})
            return
        typer.echo(
            f"{running} running sequences: {report['host_ms_per_step']:.2f} ms of host a step (p50 "
            f"{report['p50_ms']:.2f}, p99 {report['p99_ms']:.2f}), {report['steps_per_s']:.0f} steps/s, "
            f"{report['tokens_per_s']:.0f} tokens/s at most"
        )


def _measure(running: int, steps: int, decode_steps: int) -> list[float]:
    from ..serving import Engine, EngineConfig, Request, SamplingParams

    tokens = (steps + 2) * decode_steps + 1
    device = _idle_device(running, 16 + tokens, decode_steps)
    config = EngineConfig(max_batch=running, max_step_tokens=16 * running, max_decode_steps=decode_steps)
    times: list[float] = []
    with Engine(device, config, vocab_size=_VOCAB) as engine:
        generations = [
            engine.submit(
                Request(
                    tuple((number * 16 + i) % _VOCAB for i in range(16)),
                    SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number),
                )
            )
            for number in range(running)
        ]
        while engine.metrics.decode.calls == 0:
            engine.step()
        for _ in range(steps):
            start = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - start)
            for generation in generations:
                for _event in generation.poll():
                    pass
    return times


def _idle_device(running: int, max_len: int, decode_steps: int) -> "Device":
    import numpy as np

    from ..backends.base import CacheGroup
    from ..models.logprobs import TokenLogprobs
    from ..models.step import StepBatch, StepOutput
    from ..serving.plan import Bucket

    class IdleDevice:
        """Draws token 1 always, at once."""

        num_slots, page_size, compile_seconds, is_warm = running, _PAGE, 0.0, True
        groups = (CacheGroup(num_layers=1, num_kv_heads=1, head_dim=1),)
        buckets = (Bucket(running, running, "decode"), Bucket(16 * running, running, "mixed"))

        def __init__(self) -> None:
            self.max_len = max_len
            self.num_pages = (running * -(-max_len // _PAGE),)

        def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
            tokens = np.ones((bucket.num_rows, decode_steps), np.int32)
            nothing: Any = None
            logprobs = TokenLogprobs(nothing, nothing, nothing, nothing)
            return StepOutput(tokens, nothing, logprobs, None, None)  # pyright: ignore[reportArgumentType]

        def admit(self, slots: Any, histories: Any, rows: Any) -> None: ...
        def copy_pages(self, copies: Any) -> None: ...
        def warm_up(self) -> None: ...
        def reset(self) -> None: ...
        def close(self) -> None: ...

    return IdleDevice()
