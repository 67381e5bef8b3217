"""/v1/admin/workers: a look at the workers, and taking one out of service for a while.

Who may call is decided before a request gets here, see ``auth``.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.server.body import StrictRoute
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading, working
from tenfold.server.protocol.workers import WorkerBody, WorkerList, WorkerReply, worker_dict
from tenfold.server.requests import reply_headers
from tenfold.server.state import state_of

router = APIRouter(prefix="/v1/admin/workers", route_class=StrictRoute, tags=["admin"])


@router.get("", response_model=WorkerList, responses=reading())
async def workers(request: Request) -> Response:
    """Every worker, with what it holds and has to do."""
    found = [worker_dict(status) for status in state_of(request).backend.workers()]
    return Json({"object": "list", "data": found})


@router.post("/{worker:path}/drain", response_model=WorkerReply, responses=working())
async def drain(worker: str, request: Request, body: WorkerBody | None = None) -> Response:
    """Send the worker no new requests; it finishes those it has."""
    status = state_of(request).backend.drain_worker(worker)
    return Json(worker_dict(status), headers=reply_headers(body or WorkerBody()))


@router.post("/{worker:path}/resume", response_model=WorkerReply, responses=working())
async def resume(worker: str, request: Request, body: WorkerBody | None = None) -> Response:
    """Send the worker requests again."""
    status = state_of(request).backend.drain_worker(worker, False)
    return Json(worker_dict(status), headers=reply_headers(body or WorkerBody()))
