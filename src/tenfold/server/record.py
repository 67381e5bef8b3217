"""What is remembered of one HTTP request while it runs, and the line that is logged at its end.

Knows nothing of bodies: handlers fill it in, the envelope around the app reads it.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.core.errors import RateLimited, TenfoldError
from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, Finished, GenerateEvent


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds of the server's clock; ``first`` and ``last`` are tokens'.

    ``client_fixed``: a key or header named the client, so the body's ``user`` does not. ``limit``:
    the hard limit that refused it.
    """

    id: str
    method: str
    path: str
    started: float
    client: str = "anonymous"
    client_fixed: bool = False
    model: str = ""
    stream: bool = False
    ran: bool = False
    status: int = 0
    gone: bool = False
    error: str = ""
    limit: str = ""
    usage: Usage = field(default_factory=Usage)
    queue_seconds: float | None = None
    first: float | None = None
    last: float | None = None
    finishes: list[str] = field(default_factory=list)
    last_by_choice: dict[int, float] = field(default_factory=dict)

    def failed(self, error: TenfoldError) -> None:
        """Note what the request ended with."""
        self.error = error.code
        if isinstance(error, RateLimited):
            self.limit = error.limit

    def saw(self, event: GenerateEvent, now: float) -> float | None:
        """Note an event; returns the seconds since the choice's previous token, if it had one."""
        if isinstance(event, Finished):
            self.usage, self.queue_seconds = event.usage, event.queue_seconds
        elif isinstance(event, ChoiceEnd):
            self.finishes.append(event.finish)
        elif isinstance(event, Delta) and event.token_ids:
            now = now if event.at is None else event.at
            self.usage.completion_tokens += len(event.token_ids)
            self.first = now if self.first is None else self.first
            self.last = now
            before = self.last_by_choice.get(event.index)
            self.last_by_choice[event.index] = now
            return None if before is None else now - before
        return None

    @property
    def finish(self) -> str:
        """How the choices ended, each way once: "stop", or "length,stop". Empty: they did not."""
        return ",".join(sorted(set(self.finishes)))

    def fields(self, now: float) -> dict[str, Any]:
        """The log line's fields."""
        return {
            "id": self.id,
            "client": self.client,
            "model": self.model,
            "path": self.path,
            "status": self.status,
            "stream": self.stream,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "queue_ms": _ms(self.queue_seconds),
            "ttft_ms": _ms(None if self.first is None else self.first - self.started),
            "total_ms": _ms(now - self.started),
            "finish": self.finish or None,
            "error": self.error or None,
        }


def log_line(fields: dict[str, Any], style: Literal["json", "text"], event: str = "request") -> str:
    """One line without line breaks, whatever a client put into a field."""
    if style == "json":
        return json.dumps({"event": event, **fields})
    return f"{event} " + " ".join(f"{key}={_text(value)}" for key, value in fields.items())


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record that the envelope put into an ASGI scope."""
    record: RequestRecord = scope["state"]["record"]
    return record


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) and value.isascii() and value.isprintable() and value:
        return value if not set(value) & set(' ="') else json.dumps(value)
    return json.dumps(value)
