"""What the HTTP face can be told. Plain values: config files and flags are read elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class ServerSettings:
    """Settings of one server.

    ``admin_key_sha256`` None: the admin paths answer loopback peers that are no browser.
    ``body_limit`` in bytes. Who the clients are, and their keys, is ``fleet.tenants``'.
    ``ping_seconds`` between keep-alive comments of a silent stream; 0 sends none.
    ``request_timeout`` (seconds) is the longest a request may take and the default of its
    ``timeout``. ``body_seconds``: how long a request's body may take to arrive.
    ``max_client_labels``: clients beyond this many share the metrics label "other".
    ``drain_grace``: seconds between ``/ready`` turning 503 and new requests being refused.
    """

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
