"""/v1/models: OpenAI's list with what Tenfold knows of each model beside it."""

from __future__ import annotations

from typing import Any, Literal

from tenfold.core.messages import ResidencyState
from tenfold.fleet.types import ModelStatus
from tenfold.server.protocol.base import Reply

State = Literal["loading", "ready", "failed", "unloading"]


class ModelReply(Reply):
    """``kind`` and the numbers are null until the model is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: State
    kind: Literal["generate", "embed"] | None
    family: str | None
    max_model_len: int | None
    parameters: int | None
    embedding_size: int | None
    has_chat_template: bool
    licence: str


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelReply]


class AdminModelReply(ModelReply):
    """``residency``: where its weights are, by device. ``held``: no request wakes it. ``ttl``:
    seconds without work after which it sleeps. ``floor_bytes`` and ``limit_bytes``: of its keys and
    values. ``migrations``: how often it moved to another device."""

    device: str
    devices: list[str]
    residency: dict[str, ResidencyState]
    held: bool
    pinned: bool
    ttl: float | None
    floor_bytes: int
    limit_bytes: int | None
    evict_cost: float
    migrations: int
    error: str
    weight_bytes: int | None
    kv_bytes_per_token: int | None


def model_dict(status: ModelStatus) -> dict[str, Any]:
    """A ``ModelReply`` as a plain dict."""
    facts = status.facts
    return {
        "id": status.name,
        "object": "model",
        "created": status.created,
        "owned_by": "tenfold",
        "status": status.state,
        "kind": facts.kind if facts else None,
        "family": facts.family if facts else None,
        "max_model_len": facts.context_length if facts else None,
        "parameters": facts.parameters if facts else None,
        "embedding_size": facts.hidden_size if facts and facts.kind == "embed" else None,
        "has_chat_template": status.has_chat_template,
        "licence": status.licence,
    }


_RESIDENCY = (
    *("residency", "held", "pinned", "ttl", "floor_bytes", "limit_bytes", "evict_cost"),
    "migrations",
)


def admin_model_dict(status: ModelStatus) -> dict[str, Any]:
    """An ``AdminModelReply`` as a plain dict."""
    facts = status.facts
    return {
        **model_dict(status),
        "device": status.device,
        "devices": status.devices,
        **{field: getattr(status, field) for field in _RESIDENCY},
        "error": status.error,
        "weight_bytes": facts.weight_bytes if facts else None,
        "kv_bytes_per_token": facts.kv_bytes_per_token if facts else None,
    }
