"""/v1/admin/workers: bodies and answers."""

from __future__ import annotations

from typing import Any, Literal

from tenfold.fleet.types import WorkerStatus
from tenfold.server.protocol.base import Body, Reply


class WorkerBody(Body):
    """Nothing is asked for yet."""


class WorkerReply(Reply):
    """``requests``: calls that the worker has now; draining is done when there are none. ``pid`` is
    0, and ``capacity_bytes`` too, while it is away."""

    id: str
    object: Literal["worker"]
    state: Literal["up", "away"]
    draining: bool
    requests: int
    models: list[str]
    restarts: int
    pid: int
    capacity_bytes: int


class WorkerList(Reply):
    object: Literal["list"]
    data: list[WorkerReply]


def worker_dict(status: WorkerStatus) -> dict[str, Any]:
    """A ``WorkerReply`` as a plain dict."""
    return {
        "id": status.name,
        "object": "worker",
        "state": status.state,
        "draining": status.draining,
        "requests": status.requests,
        "models": status.models,
        "restarts": status.restarts,
        "pid": status.pid,
        "capacity_bytes": status.capacity_bytes,
    }
