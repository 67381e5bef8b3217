"""/v1/admin/*: load, unload, pin, drain, and a look at queue and workers.

Who may call is decided before a request gets here, see ``auth``.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from tenfold.server.body import StrictRoute
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading, working
from tenfold.server.protocol.admin import (
    DrainBody,
    DrainReply,
    LoadBody,
    PinBody,
    QueueReply,
    ScheduleReply,
    StatsReply,
    UnloadBody,
    UnloadReply,
)
from tenfold.server.protocol.models import AdminModelReply, admin_model_dict
from tenfold.server.requests import reply_headers
from tenfold.server.state import state_of

router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["admin"])


@router.post(
    "/models/{model:path}/load", response_model=AdminModelReply, responses=working(409, 422)
)
async def load(model: str, request: Request, body: LoadBody | None = None) -> Response:
    """Load a model; answers when it is ready. A model that is loaded already: 409."""
    body = body or LoadBody()
    status = await state_of(request).backend.load(model, body.source)
    return Json(admin_model_dict(status), headers=reply_headers(body))


@router.post("/models/{model:path}/unload", response_model=UnloadReply, responses=working(409))
async def unload(model: str, request: Request, body: UnloadBody | None = None) -> Response:
    """Unload a model and give its pages back."""
    body = body or UnloadBody()
    await state_of(request).backend.unload(model, bool(body.force))
    return Json({"id": model, "unloaded": True}, headers=reply_headers(body))


@router.post("/models/{model:path}/pin", response_model=AdminModelReply, responses=working(409))
async def pin(model: str, request: Request, body: PinBody | None = None) -> Response:
    """Keep a model in memory, or (``pinned: false``) let it go when others need the room."""
    body = body or PinBody()
    status = state_of(request).backend.pin(model, body.pinned is not False)
    return Json(admin_model_dict(status), headers=reply_headers(body))


@router.post("/drain", response_model=DrainReply, responses=working())
async def drain(request: Request, body: DrainBody | None = None) -> Response:
    """Take no more requests. ``/ready`` turns 503; running requests finish."""
    body = body or DrainBody()
    state = state_of(request)
    drained = state.drain()
    if body.wait:
        # Shielded: an administrator who hangs up does not stop the draining.
        await asyncio.shield(drained)
    done = "drained" if drained.done() else "draining"
    return Json({"status": done}, headers=reply_headers(body))


@router.get("/queue", response_model=QueueReply, responses=reading())
async def queue(request: Request) -> Response:
    """Every live request, waiting or running."""
    live = [asdict(info) for info in state_of(request).backend.queue()]
    return Json({"object": "list", "data": live})


@router.get("/schedule", response_model=ScheduleReply, responses=reading(400, 404))
async def schedule(
    request: Request,
    model: Annotated[str | None, Query(description="Only this model.")] = None,
    most: Annotated[
        int, Query(ge=1, le=1000, description="Waiting requests to describe, of each model.")
    ] = 20,
) -> Response:
    """Who was chosen last and who is next, of each model on each device, with reasons."""
    backend = state_of(request).backend
    if model is not None:
        backend.status(model)
    data = [
        {"device": report.device, **asdict(each)}
        for report in await backend.schedule(most)
        for each in report.models
        if model is None or each.model == model
    ]
    return Json({"object": "list", "data": data})


@router.get("/stats", response_model=StatsReply, responses=reading())
async def stats(request: Request) -> Response:
    """What each worker says of its pages, blocks and models."""
    devices = [asdict(device) for device in await state_of(request).stats.get()]
    return Json({"object": "list", "data": devices})
