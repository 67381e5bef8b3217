"""/v1/admin: sleep, wake, what models may hold, memory and decisions; bodies and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from tenfold.core.messages import ResidencyState
from tenfold.server.protocol.base import Body, Reply
from tenfold.server.protocol.models import AdminModelReply
from tenfold.server.protocol.spans import Size, Span


def _positive(value: float) -> float:
    if value < 0:
        raise ValueError(f"must not be below 0, and is {value:g}; null takes it away")
    return value


class SleepBody(Body):
    to: Literal["host", "cold"] | None = Field(
        default=None,
        description="Where the weights go: the host's memory (default), or only the disk.",
    )
    force: bool | None = Field(
        default=None,
        description="Even when pinned, and at once: what runs waits and goes on later.",
    )
    hold: bool | None = Field(
        default=None, description="Requests do not wake it; they wait until it is told to wake."
    )


class WakeBody(Body):
    """Nothing to say."""


class LimitBody(Body):
    limit: Size | None = Field(
        description='Most memory for its keys and values: bytes, or text as "512MiB"; null: none.'
    )


class ResidencyBody(Body):
    """Only what is sent changes; null takes a value away. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    pinned: bool | None = Field(None, description="It is never put to sleep to make room.")
    ttl: Annotated[Span, AfterValidator(_positive)] | None = Field(
        None, description='It sleeps after so long without work: seconds, or text as "5m".'
    )
    floor: Size | None = Field(
        None, description="Memory for its keys and values that no other model takes."
    )
    limit: Size | None = Field(None, description="Most memory for its keys and values.")
    evict_cost: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, description="How dear it is to put to sleep; others cost 1."
    )

    def changes(self) -> dict[str, Any]:
        """What ``Backend.set_residency`` takes."""
        nothing = {"pinned": False, "ttl": -1.0, "floor": 0, "limit": -1, "evict_cost": 1.0}
        sent = {name: getattr(self, name) for name in self.model_fields_set & nothing.keys()}
        return {name: nothing[name] if value is None else value for name, value in sent.items()}


class PlaceReply(Reply):
    """A model's part of one device. ``residency``: on disk ("cold"), in the host's memory, on the
    way, or in the device's. ``image_pages``: what its weights take awake; ``cached_pages``: KV
    pages that hold nothing but cached prefixes; ``limit_pages``: for weights, keys and values
    together. ``sleeps_in``: seconds until it sleeps for want of work, null where no time is set.
    ``wake_seconds``: what the last wake took."""

    residency: ResidencyState
    held: bool
    weight_pages: int
    kv_pages: int
    cached_pages: int
    image_pages: int
    limit_pages: int | None
    floor_pages: int
    idle_seconds: float
    sleeps_in: float | None
    wakes: int
    sleeps: int
    wake_seconds: float


class DevicePlaceReply(PlaceReply):
    device: str


class ModelPlaceReply(PlaceReply):
    model: str


class AdminModelDetail(AdminModelReply):
    """``places``: its part of every device that reports it."""

    places: list[DevicePlaceReply]


class AdminModelList(Reply):
    object: Literal["list"]
    data: list[AdminModelDetail]


class SpreadReply(Reply):
    """Seconds a page of the latest calls; ``count``: calls since the start."""

    count: int
    p50: float
    p99: float


class DeviceMemoryReply(Reply):
    """Memory of one device. ``fragmentation``: bytes mapped for keys and values over the bytes of
    those, null without any; ``pressure``: the KV-pressure ratio; ``virtual_bytes``: addresses that
    models have, mapped or not; ``decided``: decisions so far, by kind."""

    device: str
    page_bytes: int
    capacity_pages: int
    mapped_pages: int
    reserved_pages: int
    scratch_pages: int
    virtual_bytes: int
    resident_bytes: int
    live_kv_bytes: int
    fragmentation: float | None
    pressure: float
    map_seconds: SpreadReply
    unmap_seconds: SpreadReply
    decided: dict[str, int]
    models: list[ModelPlaceReply]


class MemoryReply(Reply):
    object: Literal["list"]
    data: list[DeviceMemoryReply]


class DecisionReply(Reply):
    """A decision about memory, ``age`` seconds ago. ``device``: whose, or "fleet". ``pages``: what
    moved, ``seconds``: what it took."""

    device: str
    kind: str
    model: str
    why: str
    age: float
    pages: int
    seconds: float


class DecisionsReply(Reply):
    object: Literal["list"]
    data: list[DecisionReply]
