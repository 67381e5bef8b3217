"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading
from tenfold.server.protocol.models import ModelList, ModelReply, model_dict
from tenfold.server.state import state_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=reading())
async def list_models(request: Request) -> Response:
    """The models served here, ready or not."""
    models = [model_dict(status) for status in state_of(request).backend.models()]
    return Json({"object": "list", "data": models})


# A name may hold slashes ("org/model"), so it takes the rest of the path.
@router.get("/v1/models/{model:path}", response_model=ModelReply, responses=reading(404))
async def show_model(model: str, request: Request) -> Response:
    """One model."""
    return Json(model_dict(state_of(request).backend.status(model)))
