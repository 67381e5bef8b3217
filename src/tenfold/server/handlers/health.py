"""GET /health, /ready, /version and /metrics: what probes and scrapers ask."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.core.errors import Unavailable
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading
from tenfold.server.protocol.status import HealthReply, ReadyReply, VersionReply
from tenfold.server.state import state_of
from tenfold.server.version import version

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(tags=["health"])


@router.get("/health", response_model=HealthReply, responses=reading())
async def health() -> Response:
    """The process is alive. Says nothing of models."""
    return Json({"status": "ok"})


@router.get("/ready", response_model=ReadyReply, responses=reading())
async def ready(request: Request) -> Response:
    """A request would succeed now; 503 before the first model is ready, and while draining."""
    state = state_of(request)
    if not state.ready():
        why = "the server is draining" if state.draining else "no model is ready yet"
        raise Unavailable(why, retry_after=2)
    names = [status.name for status in state.backend.models() if status.state == "ready"]
    return Json({"status": "ready", "models": names})


@router.get("/version", response_model=VersionReply, responses=reading())
async def show_version() -> Response:
    return Json({"version": version()})


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **reading(),
        200: {
            "description": "Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    },
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms for Prometheus."""
    state = state_of(request)
    devices = await state.stats.get()
    page = state.metrics.page(devices, state.backend.models(), state.ready())
    return Response(page, headers={"Content-Type": METRICS_TYPE})
