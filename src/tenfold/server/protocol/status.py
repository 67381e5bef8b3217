"""/v1/status, /health, /ready and /version: what the dashboard and probes read."""

from __future__ import annotations

from typing import Literal

from tenfold.server.protocol.admin import QueueEntry
from tenfold.server.protocol.base import Reply


class HealthReply(Reply):
    status: Literal["ok"]


class ReadyReply(Reply):
    status: Literal["ready"]
    models: list[str]


class VersionReply(Reply):
    version: str


class StatusModel(Reply):
    """A model with its load, over all workers that hold it (``devices``); pages are physical pages.
    ``device``: the first of those it belongs on."""

    name: str
    state: str
    kind: str | None
    device: str
    devices: list[str]
    pinned: bool
    has_chat_template: bool
    max_model_len: int | None
    running: int
    waiting: int
    weight_pages: int
    kv_pages: int
    generated_tokens: int
    error: str


class StatusLoad(Reply):
    """A model's part of one device."""

    name: str
    running: int
    waiting: int
    weight_pages: int
    kv_pages: int


class StatusDevice(Reply):
    name: str
    page_bytes: int
    capacity_pages: int
    mapped_pages: int
    reserved_pages: int
    scratch_pages: int
    models: list[StatusLoad]


class StatusClient(Reply):
    """Totals since the server started, and live requests now."""

    name: str
    live: int
    requests: int
    prompt_tokens: int
    completion_tokens: int


class StatusReply(Reply):
    """``generated_tokens`` only grows: a rate is the difference of two readings over ``now``."""

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
