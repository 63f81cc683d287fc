"""The routes of the HTTP side port."""

import time
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..front import Front, State, UnknownModelError
from ..telemetry.prometheus import Exposition
from .completions import Completions
from .errors import HttpError, error_response
from .exchange import BODY_SECONDS, MAX_BODY, Endpoint
from .guards import Authenticate, Authentication, LoadReports
from .status_page import StatusPage

_ALIVE = (State.STARTING, State.READY, State.DRAINING)


def build_app(
    front: Front,
    *,
    authenticate: Authenticate | None = None,
    max_body: int = MAX_BODY,
    body_seconds: float = BODY_SECONDS,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """An ASGI application over a Front, to run in its event loop.

    Args:
        front: what answers.
        authenticate: who a bearer token belongs to, which everything below /v1 needs; None lets everybody in.
        max_body: bytes of a request.
        body_seconds: within which a request's body must come.
        routes: of others, such as batch jobs; those below /v1 are protected as well.
    """
    completions, page, probes = Completions(front), StatusPage(front), Probes(front)

    def post(path: str, work: Any) -> Route:
        return Route(path, Endpoint(work, max_body=max_body, body_seconds=body_seconds), methods=["POST"])

    middleware = [Middleware(LoadReports, front=front)]
    if authenticate is not None:
        middleware.append(Middleware(Authentication, authenticate=authenticate, counters=front.counters))
    return Starlette(
        routes=[
            Route("/", page.html),
            Route("/status.json", page.json),
            Route("/healthz", probes.alive),
            Route("/readyz", probes.ready),
            Route("/health", probes.ready),
            Route("/metrics", probes.metrics),
            Route("/v1/models", probes.models),
            Route("/v1/models/{name:path}", probes.model),
            post("/v1/completions", completions.complete),
            post("/v1/chat/completions", completions.chat),
            *routes,
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _not_found, Exception: _unforeseen},
    )


class Probes:
    """What Kubernetes, Prometheus and gateways ask.

    Args:
        front: what answers.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._exposition = Exposition(front)
        self._created = int(time.time())

    async def alive(self, request: Request) -> Response:
        """GET /healthz: 503 once only a restart helps."""
        return self._state(self._front.state in _ALIVE)

    async def ready(self, request: Request) -> Response:
        """GET /readyz: 200 while requests are taken."""
        return self._state(self._front.state is State.READY)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        body, content_type = self._exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._front.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        names, name = self._front.names, request.path_params["name"]
        if name not in names:
            return error_response(UnknownModelError(f"model is {name[:200]!r}, expected one of: {', '.join(names)}"))
        return JSONResponse(self._model(name))

    def _state(self, good: bool) -> Response:
        return JSONResponse({"state": self._front.state.value}, 200 if good else 503)

    def _model(self, name: str) -> dict[str, Any]:
        head = {"id": name, "object": "model", "created": self._created, "owned_by": "distaff"}
        return {**head, "root": self._front.card.name, "max_model_len": self._front.card.context}


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    told = HttpError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}", kind)
    response = error_response(told)
    response.headers.update(error.headers or {})
    return response


async def _unforeseen(request: Request, error: Exception) -> Response:
    return error_response(error)
