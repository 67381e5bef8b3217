"""/v1/admin: models' sleep and limits, devices' memory, and why it moved.

Who may call is decided before a request gets here, see ``auth``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from tenfold.fleet.types import ModelStatus
from tenfold.server.body import StrictRoute
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading, working
from tenfold.server.memory import device_dict, place_dict
from tenfold.server.protocol.base import Body
from tenfold.server.protocol.models import AdminModelReply, admin_model_dict
from tenfold.server.protocol.residency import (
    AdminModelList,
    DecisionsReply,
    LimitBody,
    MemoryReply,
    ResidencyBody,
    SleepBody,
    WakeBody,
)
from tenfold.server.requests import reply_headers
from tenfold.server.state import state_of

router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["admin"])

MOST = 1000


@router.get("/models", response_model=AdminModelList, responses=reading())
async def admin_models(request: Request) -> Response:
    """Every model with its state, sizes and limits, and what it holds of each device."""
    state = state_of(request)
    devices = await state.stats.get()
    data = [
        {
            **admin_model_dict(status),
            "places": [
                {"device": device.device, **place_dict(model)}
                for device in devices
                for model in device.models
                if model.name == status.name
            ],
        }
        for status in state.backend.models()
    ]
    return Json({"object": "list", "data": data})


@router.post("/models/{model:path}/sleep", response_model=AdminModelReply, responses=working(409))
async def sleep(model: str, request: Request, body: SleepBody | None = None) -> Response:
    """Take a model's weights out of the device's memory, once its requests are done. A request
    wakes it, unless it is held. A pinned one: 409, unless forced; one that is still busy after
    30 seconds: 504, and it sleeps when it is done."""
    body = body or SleepBody()
    status = await state_of(request).backend.sleep(
        model, body.to or "host", bool(body.force), bool(body.hold)
    )
    return _told(status, body)


@router.post("/models/{model:path}/wake", response_model=AdminModelReply, responses=working(409))
async def wake(model: str, request: Request, body: WakeBody | None = None) -> Response:
    """Bring a model's weights back; answers when they are there."""
    return _told(await state_of(request).backend.wake(model), body or WakeBody())


@router.post("/models/{model:path}/limit", response_model=AdminModelReply, responses=working())
async def limit(model: str, request: Request, body: LimitBody) -> Response:
    """Set or lift the limit of a model's keys and values. One that holds more is brought down
    within ``residency.shrink_seconds``."""
    allowed = -1 if body.limit is None else body.limit
    return _told(state_of(request).backend.set_residency(model, limit=allowed), body)


@router.patch("/models/{model:path}/residency", response_model=AdminModelReply, responses=working())
async def residency(model: str, request: Request, body: ResidencyBody) -> Response:
    """Change what a model may hold and how long it stays. In force at once."""
    return _told(state_of(request).backend.set_residency(model, **body.changes()), body)


def _told(status: ModelStatus, body: Body) -> Response:
    return Json(admin_model_dict(status), headers=reply_headers(body))


@router.get("/memory", response_model=MemoryReply, responses=reading())
async def memory(request: Request) -> Response:
    """Every device's pages: capacity, mapped, ready, by model; how fast they move."""
    devices = [device_dict(device) for device in await state_of(request).stats.get()]
    return Json({"object": "list", "data": devices})


@router.get("/decisions", response_model=DecisionsReply, responses=reading(400))
async def decisions(
    request: Request,
    model: Annotated[str | None, Query(description="Only this model.")] = None,
    most: Annotated[int, Query(ge=1, le=MOST, description="At most so many.")] = 100,
    limits: Annotated[bool, Query(description="With changes of what models may hold.")] = True,
) -> Response:
    """Why memory moved: the latest decisions of all devices, newest first."""
    found = await state_of(request).backend.decisions(most if model is None and limits else MOST)
    data = [
        asdict(one)
        for one in found
        if (model is None or one.model == model) and (limits or one.kind != "limit")
    ]
    return Json({"object": "list", "data": data[:most]})
