"""/v1/admin/clients and /v1/admin/groups: who may call, with what share and which limits.

Every change leaves a line in the log: who, what, never a key.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.fleet.tenants import Tenants
from tenfold.server.auth import Caller
from tenfold.server.body import StrictRoute
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading, working
from tenfold.server.protocol.clients import (
    ClientBody,
    ClientChange,
    ClientList,
    ClientReply,
    DeletedReply,
    GroupBody,
    GroupChange,
    GroupList,
    GroupReply,
    NewKeyReply,
    RotateBody,
    client_dict,
    group_dict,
)
from tenfold.server.record import log_line, record_of
from tenfold.server.state import state_of

router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["clients"])

_audit_log = logging.getLogger("tenfold.audit")

_CLOSED = "This server was open; from now on every caller needs a key."


def _tenants(request: Request) -> Tenants:
    return state_of(request).tenants


def _audit(request: Request, action: str, name: str, **what: Any) -> None:
    caller: Caller = request.scope["state"]["caller"]
    peer = request.client.host if request.client else None
    who = {"id": record_of(request.scope).id, "by": caller.name, "peer": peer}
    fields = {**who, "action": action, "name": name, **what}
    _audit_log.info(log_line(fields, state_of(request).settings.log_format, "audit"))


# --- clients ----------------------------------------------------------------------------------
@router.get("/clients", response_model=ClientList, responses=reading())
async def list_clients(request: Request) -> Response:
    """Every client with its settings and the ids of its keys."""
    tenants = _tenants(request)
    data = [client_dict(tenants.client(name)) for name in tenants.clients]
    required = tenants.keys_required
    return Json({"object": "list", "keys_required": required, "data": data})


@router.post("/clients", response_model=NewKeyReply, responses=working(409))
async def add_client(body: ClientBody, request: Request) -> Response:
    """Make a client. The answer holds its key: it is told this once."""
    tenants, changes = _tenants(request), body.changes()
    was_open = not tenants.keys_required
    key = tenants.add_client(body.name, changes)
    _audit(request, "client.add", body.name, **changes)
    made = client_dict(tenants.client(body.name))
    return Json({**made, "key": key, "note": _CLOSED if was_open else ""})


@router.get("/clients/{name}", response_model=ClientReply, responses=reading(404))
async def show_client(name: str, request: Request) -> Response:
    """One client."""
    return Json(client_dict(_tenants(request).client(name)))


@router.patch("/clients/{name}", response_model=ClientReply, responses=working())
async def set_client(name: str, body: ClientChange, request: Request) -> Response:
    """Change a client's weight, group, limits, isolation, or disable it. In force at once."""
    tenants, changes = _tenants(request), body.changes()
    tenants.set_client(name, changes)
    _audit(request, "client.set", name, **changes)
    return Json(client_dict(tenants.client(name)))


@router.delete("/clients/{name}", response_model=DeletedReply, responses=reading(400, 404, 409))
async def remove_client(name: str, request: Request) -> Response:
    """Forget a client that was made live, with its keys. Its running requests go on."""
    _tenants(request).remove_client(name)
    _audit(request, "client.remove", name)
    return Json({"name": name, "deleted": True})


@router.post("/clients/{name}/rotate", response_model=NewKeyReply, responses=working())
async def rotate_key(name: str, request: Request, body: RotateBody | None = None) -> Response:
    """Make another key. The older ones end now, after a grace, or (``keep``) not at all."""
    tenants, grace = _tenants(request), body.grace() if body else 0.0
    key = tenants.rotate(name, grace=grace)
    made = client_dict(tenants.client(name))
    _audit(request, "client.rotate", name, key_id=made["keys"][-1]["id"], grace=grace)
    return Json({**made, "key": key, "note": ""})


@router.delete(
    "/clients/{name}/keys/{key_id}", response_model=ClientReply, responses=reading(400, 404)
)
async def revoke_key(name: str, key_id: str, request: Request) -> Response:
    """End one key at once."""
    tenants = _tenants(request)
    tenants.revoke(name, key_id)
    _audit(request, "client.revoke", name, key_id=key_id)
    return Json(client_dict(tenants.client(name)))


# --- groups -----------------------------------------------------------------------------------
@router.get("/groups", response_model=GroupList, responses=reading())
async def list_groups(request: Request) -> Response:
    """Every group with its settings."""
    tenants = _tenants(request)
    data = [group_dict(tenants.group(name)) for name in tenants.groups]
    return Json({"object": "list", "data": data})


@router.post("/groups", response_model=GroupReply, responses=working(409))
async def add_group(body: GroupBody, request: Request) -> Response:
    """Make a group."""
    tenants, changes = _tenants(request), body.changes()
    tenants.add_group(body.name, changes)
    _audit(request, "group.add", body.name, **changes)
    return Json(group_dict(tenants.group(body.name)))


@router.get("/groups/{name}", response_model=GroupReply, responses=reading(404))
async def show_group(name: str, request: Request) -> Response:
    """One group."""
    return Json(group_dict(_tenants(request).group(name)))


@router.patch("/groups/{name}", response_model=GroupReply, responses=working())
async def set_group(name: str, body: GroupChange, request: Request) -> Response:
    """Change a group's weight, place or limits. In force at once."""
    tenants, changes = _tenants(request), body.changes()
    tenants.set_group(name, changes)
    _audit(request, "group.set", name, **changes)
    return Json(group_dict(tenants.group(name)))


@router.delete("/groups/{name}", response_model=DeletedReply, responses=reading(400, 404, 409))
async def remove_group(name: str, request: Request) -> Response:
    """Forget a group that was made live and that nobody is in."""
    _tenants(request).remove_group(name)
    _audit(request, "group.remove", name)
    return Json({"name": name, "deleted": True})
