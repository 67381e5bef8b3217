"""GET /v1/status: the whole server at a glance, for the dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from math import inf
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.fleet.types import ModelStatus, RequestInfo
from tenfold.server.auth import Caller
from tenfold.server.clients import ClientTotals
from tenfold.server.errors import Json
from tenfold.server.handlers.docs import reading
from tenfold.server.memory import fragmentation, place_dict
from tenfold.server.protocol.status import StatusReply
from tenfold.server.service_book import ClientRow
from tenfold.server.state import ServerState, state_of
from tenfold.server.version import version

OTHERS = "(other clients)"
MAX_ROWS = 200
_LOAD = ("running", "waiting", "weight_pages", "kv_pages", "cached_pages")

router = APIRouter(tags=["health"])


@router.get("/v1/status", response_model=StatusReply, responses=reading())
async def status(request: Request) -> Response:
    """Models, pages, queue and clients. With API keys, other clients' names and ids are hidden."""
    state = state_of(request)
    caller: Caller = request.scope["state"]["caller"]
    hides = state.tenants.keys_required and not caller.admin
    return Json(await _report(state, caller.name if hides else None))


async def _report(state: ServerState, only: str | None) -> dict[str, Any]:
    devices = await state.stats.get()
    loads = _summed(devices)
    live = [_masked(info, only) for info in state.backend.queue()]
    jain = {row.device: row.value for row in state.services.jain() if row.service == "computed"}
    now = state.clock.now()
    return {
        "version": version(),
        "ready": state.ready(),
        "draining": state.draining,
        "now": now,
        "uptime": now - state.started,
        "generated_tokens": sum(model.generated_tokens for model in loads.values()),
        "models": [_model(each, loads.get(each.name)) for each in state.backend.models()],
        "devices": [_device(device, jain.get(device.device)) for device in devices],
        "queue": live[:MAX_ROWS],
        "clients": _clients(state, live, only),
        "decisions": await state.decisions.get(),
    }


def _summed(devices: list[DeviceStats]) -> dict[str, ModelStats]:
    """Each model's load, over all devices that hold it."""
    sums: dict[str, ModelStats] = {}
    for load in (load for device in devices for load in device.models):
        total = sums.setdefault(load.name, ModelStats(load.name, load.state, idle_seconds=inf))
        for field in (*_LOAD, "generated_tokens"):
            setattr(total, field, getattr(total, field) + getattr(load, field))
        total.idle_seconds = min(total.idle_seconds, load.idle_seconds)
        if load.sleeps_in is not None:
            first = inf if total.sleeps_in is None else total.sleeps_in
            total.sleeps_in = min(first, load.sleeps_in)
    return sums


def _masked(info: RequestInfo, only: str | None) -> dict[str, Any]:
    shown = asdict(info)
    if only is not None and info.client != only:
        shown |= {"client": OTHERS, "id": ""}
    return shown


def _model(status: ModelStatus, load: ModelStats | None) -> dict[str, Any]:
    load = load or ModelStats(status.name, status.state)
    facts = status.facts
    return {
        "name": status.name,
        "state": status.state,
        "kind": facts.kind if facts else None,
        "device": status.device,
        "devices": status.devices,
        "residency": status.residency,
        "held": status.held,
        "pinned": status.pinned,
        "limit_bytes": status.limit_bytes,
        "has_chat_template": status.has_chat_template,
        "max_model_len": facts.context_length if facts else None,
        **{field: getattr(load, field) for field in _LOAD},
        "idle_seconds": load.idle_seconds,
        "sleeps_in": load.sleeps_in,
        "generated_tokens": load.generated_tokens,
        "error": status.error,
    }


def _device(device: DeviceStats, jain: float | None) -> dict[str, Any]:
    return {
        "name": device.device,
        "page_bytes": device.page_bytes,
        "capacity_pages": device.capacity_pages,
        "mapped_pages": device.mapped_pages,
        "reserved_pages": device.reserved_pages,
        "scratch_pages": device.scratch_pages,
        "fragmentation": fragmentation(device),
        "pressure": device.pressure,
        "rounds": device.rounds,
        "jain": jain,
        "models": [
            {
                "name": load.name,
                "running": load.running,
                "waiting": load.waiting,
                **place_dict(load),
            }
            for load in device.models
        ],
    }


def _clients(
    state: ServerState, live: Iterable[dict[str, Any]], only: str | None
) -> list[dict[str, Any]]:
    """One row a client, the busiest first."""

    def shown(name: str) -> str:
        return name if only is None or name == only else OTHERS

    running = Counter(info["client"] for info in live)
    rows: dict[str, ClientTotals] = {}
    for name, totals in state.book.lines().items():
        row = rows.setdefault(shown(name), ClientTotals())
        row.requests += totals.requests
        row.prompt_tokens += totals.prompt_tokens
        row.completion_tokens += totals.completion_tokens
    for name in running:
        rows.setdefault(name, ClientTotals())
    order = sorted(rows, key=lambda name: (-running[name], -rows[name].requests, name))
    services = state.services.rows(shown)
    return [
        {
            "name": name,
            "live": running[name],
            **asdict(rows[name]),
            **_service(services.get(name, ClientRow())),
        }
        for name in order
    ]


def _service(row: ClientRow) -> dict[str, Any]:
    totals = row.totals
    known = totals.prompt_tokens > 0
    return {
        "service": totals.service,
        "asked_service": totals.asked_service,
        "hit_rate": totals.cached_tokens / totals.prompt_tokens if known else None,
        "share": row.share,
        "fair": row.fair,
        "credit": row.credit,
        "drift": row.drift,
        "waiting": row.waiting,
        "running": row.running,
        "oldest_wait": row.oldest_wait,
    }
