"""Puts the HTTP face together. Knows the endpoints and nothing of how models run."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from tenfold.core.clock import Clock
from tenfold.fleet.tenants import Tenants
from tenfold.server.backend import Backend
from tenfold.server.envelope import Envelope
from tenfold.server.errors import install_handlers
from tenfold.server.handlers import (
    admin,
    chat,
    clients,
    completions,
    embeddings,
    health,
    models,
    residency,
    status,
    tokens,
    ui,
    workers,
)
from tenfold.server.limits import HEADERS as LIMIT_HEADERS
from tenfold.server.openapi import document
from tenfold.server.settings import ServerSettings
from tenfold.server.state import ServerState
from tenfold.server.version import version

_EXPOSED = ["X-Request-Id", "X-Tenfold-Ignored", "Retry-After", *LIMIT_HEADERS]


def create_app(
    backend: Backend,
    settings: ServerSettings,
    tenants: Tenants | None = None,
    clock: Clock | None = None,
) -> FastAPI:
    """An ASGI app over ``backend``. Apps share nothing: several may live in one process. Without
    ``tenants`` nobody needs a key, until a client is made live.

    ``app.state.server`` is its ServerState.
    """
    app = FastAPI(
        title="Tenfold",
        version=version(),
        docs_url=None,  # the documentation pages would load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    state = ServerState.make(backend, settings, tenants, clock)
    app.state.server = state
    install_handlers(app)
    rooms = (
        *(chat, completions, embeddings, models, tokens, health, status),
        *(admin, residency, workers, clients),
    )
    for room in rooms:
        app.include_router(room.router)
    app.include_router(ui.make_router())
    app.add_middleware(Envelope, state=state)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
