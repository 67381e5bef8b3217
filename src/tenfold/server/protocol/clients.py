"""/v1/admin/clients and /v1/admin/groups: bodies and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tenfold.core.errors import InvalidRequest
from tenfold.core.settings import ClientSettings, GroupSettings
from tenfold.fleet.tenants import CLIENT_FIELDS, GROUP_FIELDS, Entry
from tenfold.server.protocol.base import Body, Reply

TenantName = Annotated[str, Field(min_length=1, max_length=64)]
Weight = Annotated[float, Field(gt=0, le=1e9)]
Limit = Annotated[int, Field(ge=1, le=1 << 53)]


class GroupChange(Body):
    """Only what is sent changes. null takes a live change back: the config file's value, or the
    default, is in force again. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    weight: Weight | None = Field(None, description="Share among its siblings. Default 1.")
    group: str | None = Field(None, max_length=64, description="The group it is in; empty: none.")
    requests_per_minute: Limit | None = Field(None, description="In any 60 seconds.")
    tokens_per_minute: Limit | None = Field(
        None, description="In any 60 seconds, prompts and answers together."
    )
    max_concurrent: Limit | None = Field(None, description="Waiting and running at once.")

    def changes(self) -> dict[str, Any]:
        return self.model_dump(include=self.model_fields_set & {*GROUP_FIELDS})


class ClientChange(GroupChange):
    max_requests: Limit | None = Field(None, description="Requests that may wait.")
    max_tokens: Limit | None = Field(None, description="Prompt tokens that may wait.")
    isolate: bool | None = Field(None, description="Share no cached prefixes with others.")
    disabled: bool | None = Field(None, description="Refuse its keys with 403.")

    def changes(self) -> dict[str, Any]:
        return self.model_dump(include=self.model_fields_set & {*CLIENT_FIELDS})


class GroupBody(GroupChange):
    name: TenantName


class ClientBody(ClientChange):
    name: TenantName


class RotateBody(Body):
    model_config = ConfigDict(extra="forbid")

    grace_seconds: float | None = Field(
        None,
        ge=0,
        le=1e9,
        description="How long the older keys stay good. Default 0: they end now.",
    )
    keep: bool | None = Field(None, description="Leave the older keys as they are.")

    def grace(self) -> float | None:
        """None: the older keys stay. Raises InvalidRequest where the two fields contradict."""
        if self.keep and self.grace_seconds is not None:
            raise InvalidRequest(
                "keep and grace_seconds exclude each other; send one", param="keep"
            )
        return None if self.keep else self.grace_seconds or 0.0


class KeyReply(Reply):
    """``created`` is null for a key of the config file; times are seconds since 1970."""

    id: str
    created: float | None
    ends: float | None


class GroupReply(Reply):
    """``source``: where it is defined. ``live``: the settings that were set live."""

    name: str
    source: Literal["config", "live"]
    live: list[str]
    weight: float
    group: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None


class ClientReply(GroupReply):
    max_requests: int | None
    max_tokens: int | None
    isolate: bool
    disabled: bool
    keys: list[KeyReply]


class NewKeyReply(ClientReply):
    """``key`` is told this once, and kept nowhere. ``note``: what else changed by it."""

    key: str
    note: str


class ClientList(Reply):
    object: Literal["list"]
    keys_required: bool
    data: list[ClientReply]


class GroupList(Reply):
    object: Literal["list"]
    data: list[GroupReply]


class DeletedReply(Reply):
    name: str
    deleted: bool


def group_dict(entry: Entry) -> dict[str, Any]:
    """A ``GroupReply`` as a plain dict."""
    assert isinstance(entry.settings, GroupSettings)
    return _common(entry, GROUP_FIELDS)


def client_dict(entry: Entry) -> dict[str, Any]:
    """A ``ClientReply`` as a plain dict."""
    assert isinstance(entry.settings, ClientSettings)
    return {**_common(entry, CLIENT_FIELDS), "keys": [key._asdict() for key in entry.keys]}


def _common(entry: Entry, fields: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": entry.settings.name,
        "source": "config" if entry.from_file else "live",
        "live": entry.live,
        **{name: getattr(entry.settings, name) for name in fields},
    }
