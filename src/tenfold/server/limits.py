"""Where a client stands against its hard limits, as headers that OpenAI's clients know."""

from __future__ import annotations

from tenfold.scheduling.limits import Room, Standing

_KINDS = ("requests", "tokens", "concurrent")
_PARTS = ("limit", "remaining", "reset")

HEADERS = [f"X-RateLimit-{part}-{kind}" for kind in _KINDS for part in _PARTS]
"""All that a browser page may read."""


def limit_headers(standing: Standing | None) -> dict[str, str]:
    """``x-ratelimit-limit-requests``, ``-remaining-requests``, ``-reset-requests`` ("12.5s": until
    nothing counts any more), and the same of tokens; of what is open at once there is no reset.
    Without a limit there is no header."""
    headers: dict[str, str] = {}
    for kind, room in zip(_KINDS, standing or (), strict=False):
        if room is not None:
            headers |= _of(kind, room)
    return headers


def _of(kind: str, room: Room) -> dict[str, str]:
    values = {"limit": str(room.limit), "remaining": str(room.remaining)}
    if kind != "concurrent":
        values["reset"] = f"{round(room.reset, 2):g}s"
    return {f"x-ratelimit-{part}-{kind}": value for part, value in values.items()}
