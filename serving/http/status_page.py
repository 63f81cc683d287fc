"""A page that shows what the server does, and what it reads."""

from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ..bounds import LATENCY_BOUNDS, TTFT_BOUNDS
from ..front import Front
from ..metrics import Histogram

# The page has all that it needs: no other server is asked for anything, and nothing is sent anywhere.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"


class StatusPage:
    """GET / and GET /status.json.

    Args:
        front: what is shown.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._html = files(__package__).joinpath("status.html").read_text(encoding="utf-8")

    async def html(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._html, headers={"content-security-policy": _POLICY, "cache-control": "no-cache"})

    async def json(self, request: Request) -> Response:
        """What it draws; counters and histograms count from the start, and the page takes differences."""
        return JSONResponse(self.snapshot(), headers={"cache-control": "no-store"})

    def snapshot(self) -> dict[str, Any]:
        """Everything that the page draws."""
        front, metrics, load, card = self._front, self._front.metrics, self._front.load(), self._front.card
        return {
            "model": card.name,
            "backend": card.backend,
            "dtype": card.dtype,
            "context": card.context,
            "state": front.state.value,
            "waiting": load.waiting,
            "running": load.running,
            "batch_used": metrics.running,
            "batch_rows": load.max_batch,
            "pages_used": load.pages_used,
            "pages_cached": metrics.pages_cached,
            "pages": load.pages_total,
            "requests": metrics.requests,
            "prompt_tokens": metrics.prompt_tokens,
            "output_tokens": metrics.output_tokens,
            "prefix_hit_tokens": metrics.prefix_hit_tokens,
            "preemptions": metrics.preemptions,
            "refused": sum(front.counters.refused.values()),
            "stalled": front.counters.stalled,
            "ttft": _histogram(metrics.ttft, TTFT_BOUNDS),
            "itl": _histogram(metrics.inter_token, LATENCY_BOUNDS),
        }


def _histogram(histogram: Histogram, bounds: tuple[float, ...]) -> dict[str, Any]:
    return {"sum": histogram.total, "bounds": list(bounds), "below": histogram.below(bounds)}
