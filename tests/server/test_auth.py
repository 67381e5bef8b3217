"""Keys, names, and who may reach /v1/admin."""

from __future__ import annotations

import httpx
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import CHAT, client_of, tenants_of

from tenfold.core.errors import TenfoldError
from tenfold.core.keys import hash_key
from tenfold.fleet.tenants import Tenants
from tenfold.server.app import create_app
from tenfold.server.auth import Authenticator, access_of
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio

KEYS = {"ann": "key-a", "bob": "key-b"}
CHAT_URL = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keyed(backend: FakeBackend) -> FastAPI:
    return create_app(
        backend, ServerSettings(admin_key_sha256=hash_key("root")), tenants_of(**KEYS)
    )


async def test_keys(keyed: FastAPI, backend: FakeBackend) -> None:
    async with client_of(keyed) as client:
        for headers in ({}, bearer("nope"), bearer(""), {"Authorization": "Basic key-a"}):
            reply = await client.post(CHAT_URL, json=CHAT, headers=headers)
            assert reply.status_code == 401
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert reply.json()["error"]["type"] == "authentication_error"
        # Neither a header nor the body renames the owner of a key.
        headers = {**bearer("key-b"), "X-Client-Id": "ann"}
        reply = await client.post(CHAT_URL, json={**CHAT, "user": "ann"}, headers=headers)
        assert reply.status_code == 200
        await client.post(CHAT_URL, json=CHAT, headers=bearer("root"))
    assert [request.client for request in backend.requests] == ["bob", "admin"]


async def test_keys_guard_all_but_probes(keyed: FastAPI) -> None:
    async with client_of(keyed) as client:
        for path in ("/health", "/ready", "/version", "/", "/ui/app.js", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/v1/models", "/v1/models/tiny", "/v1/status", "/v1/admin/queue", "/other"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/tokenize", json={"prompt": "x"})).status_code == 401


async def test_metrics_may_need_a_key(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(metrics_public=False), tenants_of(**KEYS))
    async with client_of(app) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=bearer("key-a"))).status_code == 200


async def test_names_without_keys(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post(CHAT_URL, json=CHAT, headers=bearer("whatever the SDK sends"))
    await client.post(CHAT_URL, json={**CHAT, "user": "ann"})
    await client.post(CHAT_URL, json={**CHAT, "user": "ann"}, headers={"X-Client-Id": "bob"})
    await client.post(CHAT_URL, json={**CHAT, "user": "zwei Wörter\n"})
    names = [request.client for request in backend.requests]
    assert names[:3] == ["anonymous", "ann", "bob"]
    assert names[3].startswith("user-")
    for bad in ("two words", "x" * 65, "é"):
        reply = await client.post(CHAT_URL, json=CHAT, headers={"X-Client-Id": bad.encode()})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "X-Client-Id"


async def test_admin_key(keyed: FastAPI) -> None:
    async with client_of(keyed) as client:
        for headers, status in (
            ({}, 401),
            (bearer("nope"), 401),
            (bearer("key-a"), 403),
            (bearer("root"), 200),
        ):
            reply = await client.get("/v1/admin/queue", headers=headers)
            assert reply.status_code == status


LOCAL = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("headers", "peer", "status"),
    [
        (LOCAL, "127.0.0.1", 200),
        ({"host": "localhost:8000"}, "::1", 200),
        ({"host": "[::1]:8000"}, "::1", 200),
        ({"host": "[::1]"}, "::ffff:127.0.0.1", 200),
        (LOCAL, "192.0.2.7", 403),
        (LOCAL, None, 403),
        ({**LOCAL, "origin": "http://127.0.0.1:8000"}, "127.0.0.1", 403),
        ({**LOCAL, "origin": "null"}, "127.0.0.1", 403),
        ({**LOCAL, "x-forwarded-for": "127.0.0.1"}, "127.0.0.1", 403),
        ({"host": "rebound.example:8000"}, "127.0.0.1", 403),
        ({}, "127.0.0.1", 403),
    ],
)
async def test_admin_without_a_key(headers: dict[str, str], peer: str | None, status: int) -> None:
    auth = Authenticator(ServerSettings(), Tenants())
    try:
        caller = auth.caller("/v1/admin/queue", headers, peer)
        assert (caller.admin, status) == (True, 200)
    except TenfoldError as error:
        assert error.status == status


async def test_client_key_is_no_admin_even_at_home(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(), tenants_of(**KEYS))
    async with client_of(app) as client:
        for headers, status in ((bearer("key-a"), 403), (bearer("nope"), 401), ({}, 200)):
            reply = await client.get("/v1/admin/queue", headers=headers)
            assert reply.status_code == status


async def test_access() -> None:
    assert access_of("/v1/admin") == "admin"
    assert access_of("/v1/administrators") == "client"
    assert access_of("/ui/app.js") == "public"
    assert access_of("/anything") == "client"


async def test_cors(backend: FakeBackend) -> None:
    app = create_app(
        backend, ServerSettings(cors_origins=["https://app.example"]), tenants_of(**KEYS)
    )
    preflight = {"Access-Control-Request-Method": "POST", "Origin": "https://app.example"}
    async with client_of(app) as client:
        reply = await client.options(CHAT_URL, headers=preflight)
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        reply = await client.options(
            CHAT_URL, headers={**preflight, "Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in reply.headers
        reply = await client.get("/v1/models", headers={"Origin": "https://app.example"})
        assert reply.status_code == 401
        assert "X-Tenfold-Ignored" in reply.headers["access-control-expose-headers"]
