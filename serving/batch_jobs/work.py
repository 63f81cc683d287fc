"""What a run has done, in figures: occupancy, and shares of the machine's limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...models.config import ModelConfig
from ...models.costs import Steps, Work, work_of
from ..limits import MachineLimits
from ..metrics import Metrics, shares
from .cost import Price, cost_of

_COUNTED = ("steps", "tokens", "drawn", "attended", "read", "seconds", "rows", "bucket_tokens")


class RunWork:
    """What an engine has done since this was made."""

    def __init__(self, metrics: Metrics, config: ModelConfig, *, dtype_bytes: int) -> None:
        self._metrics, self._config, self._bytes = metrics, config, dtype_bytes
        self._before = metrics.snapshot()

    def figures(self) -> dict[str, Any]:
        """FLOPs and bytes of the steps, seconds that the device was at work, and shares of batch and prefix cache."""
        now, before = self._metrics.snapshot(), self._before
        phases = {
            phase: {name: now[phase][name] - before[phase][name] for name in _COUNTED}
            for phase in ("prefill", "decode")
        }
        total = {name: sum(phase[name] for phase in phases.values()) for name in _COUNTED}
        counted = {
            **now,
            "prefix_query_tokens": now["prefix_query_tokens"] - before["prefix_query_tokens"],
            "prefix_hit_tokens": now["prefix_hit_tokens"] - before["prefix_hit_tokens"],
        }
        told = shares(counted, phases["prefill"], phases["decode"])
        work = [self._work(phase) for phase in phases.values()]
        return {
            "steps": total["steps"],
            "device_seconds": round(total["seconds"], 3),
            "flops": sum(each.flops for each in work),
            "bytes": sum(each.bytes for each in work),
            "batch_occupancy": round(told["batch_occupancy"], 4),
            "prefix_hit_rate": round(told["prefix_hit_rate"], 4),
        }

    def _work(self, phase: Mapping[str, Any]) -> Work:
        steps = Steps(phase["steps"], phase["tokens"], phase["drawn"], phase["attended"], phase["read"])
        return work_of(self._config, steps, weight_bytes=self._bytes, kv_bytes=self._bytes)


def summary(
    manifest: Mapping[str, Any], *, price: Price | None = None, limits: MachineLimits | None = None
) -> dict[str, Any]:
    """A job's totals over all its runs.

    Args:
        limits: of the machine that the last run was on; shares of them are of that run.

    Returns:
        requests, errors, tokens and seconds; rates, chip-hours and price are null where nothing is known.
    """
    counts, usage, runs = manifest["request_counts"], manifest["usage"], manifest["runs"]
    busy = sum(run.get("busy_seconds", run["seconds"]) for run in runs)
    chips = runs[-1].get("chips", 1) if runs else 1
    tokens = usage["total_tokens"]
    return {
        **counts,
        "errors": manifest["errors"],
        **usage,
        "runs": len(runs),
        "seconds": manifest["seconds"],
        "busy_seconds": round(busy, 3),
        "tokens_per_s": _ratio(tokens, busy),
        "completion_tokens_per_s": _ratio(usage["completion_tokens"], busy),
        "tokens_per_s_per_chip": _ratio(tokens, busy * chips),
        **_shares_of_limits(runs[-1:], limits),
        "chips": chips,
        **cost_of(manifest, price),
    }


def _shares_of_limits(runs: Sequence[Mapping[str, Any]], limits: MachineLimits | None) -> dict[str, Any]:
    """MFU and MBU while the device was at work, batch occupancy and prefix hits, of the last run."""
    run = runs[0] if runs else {}
    seconds = run.get("device_seconds")
    known = limits is not None and seconds
    return {
        "batch_occupancy": run.get("batch_occupancy"),
        "prefix_hit_rate": run.get("prefix_hit_rate"),
        "mfu": round(run["flops"] / seconds / limits.flops_per_s, 4) if known and limits is not None else None,
        "mbu": round(run["bytes"] / seconds / limits.bytes_per_s, 4) if known and limits is not None else None,
    }


def _ratio(count: float, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
