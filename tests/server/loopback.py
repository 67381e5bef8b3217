"""Reaching an app: in memory, or over a real loopback socket in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from tenfold.core.keys import hash_key
from tenfold.core.settings import ClientSettings
from tenfold.fleet.tenants import Tenants
from tenfold.server.run import bind

LOCAL = "http://127.0.0.1"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def client_of(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    """A client of an app in memory; its peer address is 127.0.0.1."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=LOCAL, headers=headers)


def tenants_of(**keys: str) -> Tenants:
    """A book of clients by name, each with one key."""
    return Tenants([ClientSettings(name, (hash_key(key),)) for name, key in keys.items()])


@contextlib.asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The app behind a real socket; yields its address."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        yield f"{LOCAL}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def sse(text: str) -> list[Any]:
    """The payloads of a stream, "[DONE]" as it is. Comments are left out."""
    found = []
    for block in text.split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                found.append(data if data == "[DONE]" else json.loads(data))
    return found
