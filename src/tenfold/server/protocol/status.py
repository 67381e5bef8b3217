"""/v1/status, /health, /ready and /version: what the dashboard and probes read."""

from __future__ import annotations

from typing import Literal

from tenfold.core.messages import ResidencyState
from tenfold.server.protocol.admin import QueueEntry
from tenfold.server.protocol.base import Reply
from tenfold.server.protocol.residency import DecisionReply, PlaceReply


class HealthReply(Reply):
    status: Literal["ok"]


class ReadyReply(Reply):
    status: Literal["ready"]
    models: list[str]


class VersionReply(Reply):
    version: str


class StatusModel(Reply):
    """A model with its load, over all workers that hold it (``devices``); pages are physical pages.
    ``device``: the first of those it belongs on. ``residency``: where its weights are, by device.
    ``limit_bytes``: of its keys and values. ``idle_seconds``: since its last request anywhere;
    ``sleeps_in``: until the first of its devices lets it sleep."""

    name: str
    state: str
    kind: str | None
    device: str
    devices: list[str]
    residency: dict[str, ResidencyState]
    held: bool
    pinned: bool
    limit_bytes: int | None
    has_chat_template: bool
    max_model_len: int | None
    running: int
    waiting: int
    weight_pages: int
    kv_pages: int
    cached_pages: int
    idle_seconds: float
    sleeps_in: float | None
    generated_tokens: int
    error: str


class StatusLoad(PlaceReply):
    """A model's part of one device."""

    name: str
    running: int
    waiting: int


class StatusDevice(Reply):
    """``fragmentation`` and ``pressure`` as of /v1/admin/memory. ``rounds``: refills of deficit
    counters. ``jain``: how even service was in the last minute
    among the clients that waited all through it; null for fewer than two."""

    name: str
    page_bytes: int
    capacity_pages: int
    mapped_pages: int
    reserved_pages: int
    scratch_pages: int
    fragmentation: float | None
    pressure: float
    rounds: int
    jain: float | None
    models: list[StatusLoad]


class StatusClient(Reply):
    """Totals since the server started, and live requests now.

    ``service``: weighted tokens computed for the client; ``asked_service`` counts cached prompt
    tokens, too. ``hit_rate``: cached of all prompt tokens that began. ``share``: of the service of
    the last ten seconds, the client's part, and ``fair`` its due; null where nobody was served.
    ``credit``: its lowest deficit counter. ``drift``: service beyond its share over the proven
    bound, -1 to 1. ``oldest_wait`` in seconds."""

    name: str
    live: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    service: float
    asked_service: float
    hit_rate: float | None
    share: float | None
    fair: float | None
    credit: float | None
    drift: float
    waiting: int
    running: int
    oldest_wait: float


class StatusReply(Reply):
    """``generated_tokens`` only grows: a rate is the difference of two readings over ``now``.
    ``decisions``: the latest about memory but for changed limits, newest first."""

    version: str
    ready: bool
    draining: bool
    now: float
    uptime: float
    generated_tokens: int
    models: list[StatusModel]
    devices: list[StatusDevice]
    queue: list[QueueEntry]
    clients: list[StatusClient]
    decisions: list[DecisionReply]
