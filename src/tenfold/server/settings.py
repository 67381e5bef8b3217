"""What the HTTP face can be told. Plain values: config files and flags are read elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, NamedTuple


class ApiKey(NamedTuple):
    """A client's name, and the sha256 (64 hex digits) of its key: the key itself is not kept."""

    name: str
    sha256: str


def hash_key(key: str) -> str:
    """What to store for an API key: the hex sha256 of its UTF-8 bytes."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(slots=True)
class ServerSettings:
    """Settings of one server.

    ``keys`` empty: nobody needs a key, clients name themselves. ``admin_key_sha256`` None: the
    admin paths answer loopback peers that are no browser. ``body_limit`` in bytes.
    ``ping_seconds`` between keep-alive comments of a silent stream; 0 sends none.
    ``request_timeout`` (seconds) is the longest a request may take and the default of its
    ``timeout``. ``body_seconds``: how long a request's body may take to arrive.
    ``max_client_labels``: clients beyond this many share the metrics label "other".
    ``drain_grace``: seconds between ``/ready`` turning 503 and new requests being refused.
    """

    keys: list[ApiKey] = field(default_factory=list)
    admin_key_sha256: str | None = None
    cors_origins: list[str] = field(default_factory=list)
    body_limit: int = 32 << 20
    body_seconds: float = 60.0
    ping_seconds: float = 15.0
    request_timeout: float = 3600.0
    max_client_labels: int = 100
    max_choices: int = 128
    metrics_compat: Literal["none", "vllm"] = "none"
    metrics_public: bool = True
    log_format: Literal["json", "text"] = "text"
    drain_grace: float = 0.0
