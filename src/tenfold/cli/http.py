"""Asking a running server: small JSON calls of the verbs that look after it."""

from __future__ import annotations

import json
from typing import Any

from tenfold.core.errors import TenfoldError, Unavailable, from_code

_CONNECT_SECONDS = 5.0


def call(
    url: str, method: str, path: str, *, key: str | None = None, body: dict[str, Any] | None = None
) -> Any:
    """The answer's JSON. Raises Unavailable when nobody answers, or the error the server tells."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    root = url.rstrip("/").removesuffix("/v1")
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    try:
        response = httpx.request(method, root + path, headers=headers, json=body, timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unavailable(
            f"no server answers at {root} ({exc}); start one with: tenfold serve"
        ) from exc
    if response.status_code >= 400:
        raise told(response.status_code, response.content)
    try:
        return response.json()
    except ValueError as exc:
        raise TenfoldError(f"{root}{path} did not answer with JSON; is it Tenfold?") from exc


def told(status: int, body: bytes) -> TenfoldError:
    """The error in a server's answer, with the server's own words."""
    try:
        error = json.loads(body)["error"]
        return from_code(str(error.get("code") or ""), str(error["message"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return TenfoldError(f"the server answered with status {status}")


def answers(url: str) -> bool:
    """Whether a server is there, whatever it is doing."""
    import httpx

    try:
        return httpx.get(url.rstrip("/").removesuffix("/v1") + "/health", timeout=1).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
