"""The dashboard's files, from the package itself: no build step, nothing from the network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "dom.js": "text/javascript; charset=utf-8",
    "memory.js": "text/javascript; charset=utf-8",
    "shares.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# The page runs only its own script and talks only to its own server, whatever a model writes.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_router() -> APIRouter:
    """Routes of ``/`` and ``/ui/…``, with the files read once."""
    router = APIRouter(include_in_schema=False)
    folder = files("tenfold.server") / "ui"
    for name, media_type in _TYPES.items():
        path = "/" if name == "index.html" else f"/ui/{name}"
        _add(router, path, (folder / name).read_bytes(), media_type)
    return router


def _add(router: APIRouter, path: str, content: bytes, media_type: str) -> None:
    async def page() -> Response:
        return Response(content, headers={"Content-Type": media_type, **_HEADERS})

    router.add_api_route(path, page, methods=["GET"])
