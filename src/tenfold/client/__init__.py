"""The client protocol and its back ends: over HTTP, in process, and scripted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenfold.client.base import Client


def connect(url: str = "http://127.0.0.1:8000", key: str | None = None) -> Client:
    """A client of a running server that speaks the OpenAI protocol."""
    from tenfold.client.http import HttpClient

    return HttpClient(url, key)
