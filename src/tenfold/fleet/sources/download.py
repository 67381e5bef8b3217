"""One file over HTTP into a ``.part`` file, going on where an earlier try stopped.

Knows nothing of repositories or hashes: whoever calls checks what came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.core.errors import PullError

if TYPE_CHECKING:
    import httpx

_PIECE = 1 << 20
_TRIES = 4
_TIMEOUT_SECONDS = 30.0


@dataclass(slots=True)
class Download:
    """A file to fetch. ``size`` is its bytes where they are known (0: unknown).

    ``pause`` is called between tries with the seconds to wait.
    """

    url: str
    part: Path
    size: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    on_bytes: Callable[[int], None] = lambda count: None
    pause: Callable[[float], None] = time.sleep

    def run(self) -> None:
        """Fill ``part``. Raises PullError when the server refuses, or keeps breaking off.

        Only tries that bring nothing new are counted, so a poor line still ends.
        """
        import httpx

        idle = 0
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_SECONDS) as client:
            while True:
                before = self._have()
                try:
                    self._once(client)
                    return
                except httpx.TransportError as exc:
                    idle = 0 if self._have() > before else idle + 1
                    if idle >= _TRIES:
                        raise PullError(f"the connection failed: {_words(exc)}") from exc
                    self.pause(0.5 * 2**idle)
                except httpx.HTTPError as exc:
                    raise PullError(f"the transfer failed: {_words(exc)}") from exc

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _once(self, client: httpx.Client) -> None:
        have = self._have()
        if self.size and have >= self.size:
            if have == self.size:
                return
            self.part.unlink()
            have = 0
        # Compressed transfer would make byte ranges mean something else.
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with client.stream("GET", self.url, headers=headers) as response:
            if response.status_code == 416:
                self._all_there(response, have)
                return
            if response.status_code not in (200, 206):
                raise PullError(refusal(response.status_code))
            goes_on = response.status_code == 206 and _starts_at(response) == have
            if response.status_code == 206 and not goes_on:
                raise PullError("the server answered another byte range than was asked for")
            self._receive(response, goes_on)

    def _receive(self, response: httpx.Response, goes_on: bool) -> None:
        have = self._have() if goes_on else 0
        with self.part.open("ab" if goes_on else "wb") as writer:
            for piece in response.iter_bytes(_PIECE):
                writer.write(piece)
                have += len(piece)
                self.on_bytes(have)

    def _all_there(self, response: httpx.Response, have: int) -> None:
        """416: the range begins at the end. Right only if the file is exactly as long as ours."""
        whole = response.headers.get("Content-Range", "").rpartition("/")[2]
        if whole != str(have):
            self.part.unlink()
            raise PullError(
                f"the server holds {whole or 'no'} bytes, and {have} had come; try again"
            )


def refusal(status: int) -> str:
    """Why a server refused, in words."""
    if status in (401, 403):
        return f"it needs a token (status {status}): accept the model's terms there, set HF_TOKEN"
    if status == 404:
        return "it has no such repository, revision or file (status 404)"
    return f"the server answered with status {status}"


def _starts_at(response: httpx.Response) -> int:
    span = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(span) if span.isdigit() else -1


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
