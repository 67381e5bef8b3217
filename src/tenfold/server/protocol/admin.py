"""/v1/admin/*: bodies and answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.server.protocol.base import Body, Reply


class LoadBody(Body):
    source: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Where from, if not from the catalogue.",
    )


class UnloadBody(Body):
    force: bool | None = Field(
        default=None, description="Even when pinned or busy: its requests end with an error."
    )


class PinBody(Body):
    pinned: bool | None = Field(default=None, description="Default true; false lets go.")


class DrainBody(Body):
    wait: bool | None = Field(
        default=None, description="Answer when the running requests are done."
    )


class DrainReply(Reply):
    status: Literal["draining", "drained"]


class UnloadReply(Reply):
    id: str
    unloaded: bool


class QueueEntry(Reply):
    id: str
    client: str
    model: str
    state: Literal["waiting", "running"]
    prompt_tokens: int
    generated: int
    age: float


class QueueReply(Reply):
    object: Literal["list"]
    data: list[QueueEntry]


class PlaceReply(Reply):
    """A request as its policy sees it: prompt tokens, how many are cached, seconds waited, why."""

    request_id: str
    client: str
    prompt_tokens: int
    matched_tokens: int
    waited: float
    why: str


class ModelScheduleReply(Reply):
    """``chosen``: the latest admissions, newest first; ``next``: the first of the ``waiting``."""

    device: str
    model: str
    policy: str
    waiting: int
    chosen: list[PlaceReply]
    next: list[PlaceReply]


class ScheduleReply(Reply):
    object: Literal["list"]
    data: list[ModelScheduleReply]


class ModelStatsReply(Reply):
    name: str
    state: str
    running: int
    waiting: int


class ClientStatsReply(Reply):
    """One client on one device: see ``core.messages.ClientStats``."""

    client: str
    service: float
    asked_service: float
    waiting: int
    running: int
    credit: float
    drift: float
    bound: float
    fair: float


class DeviceStatsReply(Reply):
    """One worker's state: see ``core.messages.DeviceStats``."""

    device: str
    page_bytes: int
    capacity_pages: int
    mapped_pages: int
    reserved_pages: int
    scratch_pages: int
    resident_bytes: int
    integrity: list[str]
    models: list[ModelStatsReply]
    clients: list[ClientStatsReply]


class StatsReply(Reply):
    object: Literal["list"]
    data: list[DeviceStatsReply]
