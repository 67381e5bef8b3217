"""/v1/admin/clients and /v1/admin/groups: changes by HTTP, what they show, and the audit lines."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT, client_of

from tenfold.core.clock import VirtualClock
from tenfold.core.keys import hash_key
from tenfold.core.messages import ClientStats
from tenfold.core.settings import ClientSettings, GroupSettings
from tenfold.fleet.tenant_file import TenantFile
from tenfold.fleet.tenants import Tenants
from tenfold.server.app import create_app
from tenfold.server.protocol.clients import ClientList, GroupList, GroupReply, NewKeyReply
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
CHAT_URL = "/v1/chat/completions"
ROOT = {"Authorization": "Bearer root"}
CLIENTS, GROUPS = "/v1/admin/clients", "/v1/admin/groups"


@pytest.fixture
def audit_lines() -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(record.getMessage()))

    logger = logging.getLogger("tenfold.audit")
    keeper, level = Keeper(), logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(keeper)
    logger.setLevel(level)


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    ann = ClientSettings("ann", (hash_key("key-a"),), group="lab")
    return Tenants([ann], [GroupSettings("lab")], file=TenantFile(tmp_path / "clients.json"))


@pytest.fixture
async def http(backend: FakeBackend, tenants: Tenants) -> AsyncIterator[httpx.AsyncClient]:
    settings = ServerSettings(admin_key_sha256=hash_key("root"), log_format="json")
    async with client_of(create_app(backend, settings, tenants), **ROOT) as made:
        yield made


async def ask(http: httpx.AsyncClient, key: str) -> httpx.Response:
    return await http.post(CHAT_URL, json=CHAT, headers={"Authorization": f"Bearer {key}"})


async def test_a_clients_life(
    http: httpx.AsyncClient, backend: FakeBackend, audit_lines: list[dict[str, Any]]
) -> None:
    body = {"name": "bob", "weight": 2, "group": "lab", "requests_per_minute": 5, "isolate": True}
    made = (await http.post(CLIENTS, json=body)).json()
    NewKeyReply.model_validate(made)
    key = made["key"]
    assert (made["weight"], made["group"], made["source"], made["note"]) == (2.0, "lab", "live", "")
    assert (await ask(http, key)).status_code == 200
    assert backend.requests[-1].client == "bob"
    assert backend.requests[-1].cache_salt.startswith("isolated:")

    shown = (await http.get(f"{CLIENTS}/bob")).json()
    assert "key" not in shown and [each["id"] for each in shown["keys"]] == [made["keys"][0]["id"]]
    changes = {"weight": 3.5, "isolate": False, "disabled": True}
    changed = (await http.patch(f"{CLIENTS}/bob", json=changes)).json()
    assert (changed["weight"], changed["isolate"], changed["disabled"]) == (3.5, False, True)
    assert changed["requests_per_minute"] == 5, "what is not sent does not change"
    refused = await ask(http, key)
    assert refused.status_code == 403
    assert refused.json()["error"]["message"] == (
        "the client 'bob' is disabled here; ask whoever runs this server"
    )
    assert refused.json()["error"]["type"] == "permission_error"
    nulls = {"disabled": None, "requests_per_minute": None}
    changed = (await http.patch(f"{CLIENTS}/bob", json=nulls)).json()
    assert (changed["disabled"], changed["requests_per_minute"]) == (False, None)

    fresh = (await http.post(f"{CLIENTS}/bob/rotate")).json()
    assert [(await ask(http, each)).status_code for each in (key, fresh["key"])] == [401, 200]
    kept = (await http.post(f"{CLIENTS}/bob/rotate", json={"keep": True})).json()
    assert [(await ask(http, each)).status_code for each in (kept["key"], fresh["key"])] == [
        200
    ] * 2
    both = {"keep": True, "grace_seconds": 3}
    assert (await http.post(f"{CLIENTS}/bob/rotate", json=both)).status_code == 400
    left = await http.delete(f"{CLIENTS}/bob/keys/{kept['keys'][-1]['id']}")
    assert [each["id"] for each in left.json()["keys"]] == [fresh["keys"][-1]["id"]]
    assert (await ask(http, kept["key"])).status_code == 401
    assert (await http.delete(f"{CLIENTS}/bob")).json() == {"name": "bob", "deleted": True}
    assert (await ask(http, fresh["key"])).status_code == 401
    assert (await http.get(f"{CLIENTS}/bob")).status_code == 404

    actions = [(line["event"], line["by"], line["action"], line["name"]) for line in audit_lines]
    verbs = ["add", "set", "set", "rotate", "rotate", "revoke", "remove"]
    assert actions == [("audit", "admin", f"client.{verb}", "bob") for verb in verbs]
    assert audit_lines[1]["weight"] == 3.5 and audit_lines[1]["peer"] == "127.0.0.1"
    assert audit_lines[4]["key_id"] == kept["keys"][-1]["id"]
    said = json.dumps(audit_lines)
    keys = (key, fresh["key"], kept["key"])
    assert not any(each in said or hash_key(each) in said for each in keys)


async def test_groups(http: httpx.AsyncClient, audit_lines: list[dict[str, Any]]) -> None:
    made = await http.post(GROUPS, json={"name": "org", "weight": 2, "max_concurrent": 8})
    GroupReply.model_validate(made.json())
    moved = await http.patch(f"{GROUPS}/lab", json={"group": "org"})
    assert (moved.json()["group"], moved.json()["source"]) == ("org", "config")
    assert moved.json()["live"] == ["group"]
    for method, path, body, status in (
        ("DELETE", f"{GROUPS}/org", None, 409),
        ("DELETE", f"{GROUPS}/lab", None, 409),
        ("DELETE", f"{CLIENTS}/ann", None, 409),
        ("POST", GROUPS, {"name": "org"}, 409),
        ("POST", GROUPS, {"name": "ann"}, 400),
        ("PATCH", f"{GROUPS}/org", {"group": "lab"}, 400),
        ("PATCH", f"{GROUPS}/zed", {"weight": 1}, 404),
        ("GET", f"{GROUPS}/zed", None, 404),
    ):
        reply = await http.request(method, path, json=body)
        assert reply.status_code == status, (method, path, reply.text)
    listed = (await http.get(GROUPS)).json()
    GroupList.model_validate(listed)
    assert [(each["name"], each["group"]) for each in listed["data"]] == [
        ("lab", "org"),
        ("org", ""),
    ]
    await http.patch(f"{GROUPS}/lab", json={"group": None})
    assert (await http.delete(f"{GROUPS}/org")).status_code == 200
    assert [line["action"] for line in audit_lines] == [
        "group.add", "group.set", "group.set", "group.remove"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": "two words"}, "name"),
        ({"name": "admin"}, "name"),
        ({"name": "bob", "weight": 0}, "weight"),
        ({"name": "bob", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "bob", "tokens_per_minute": 1.5}, "tokens_per_minute"),
        ({"name": "bob", "max_concurrent": "3"}, "max_concurrent"),
        ({"name": "bob", "group": "nowhere"}, "group"),
        ({"name": "bob", "wieght": 2}, "wieght"),
        ({"name": "bob", "key": "mine"}, "key"),
    ],
)
async def test_wrong_bodies_change_nothing(
    http: httpx.AsyncClient, tenants: Tenants, body: dict[str, Any], param: str
) -> None:
    reply = await http.post(CLIENTS, json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert list(tenants.clients) == ["ann"]


async def test_only_the_admin_may(http: httpx.AsyncClient) -> None:
    for key, status in (("key-a", 403), ("nope", 401)):
        headers = {"Authorization": f"Bearer {key}"}
        assert (await http.get(CLIENTS, headers=headers)).status_code == status
        assert (await http.post(CLIENTS, json={"name": "x"}, headers=headers)).status_code == status
    listed = (await http.get(CLIENTS)).json()
    ClientList.model_validate(listed)
    assert listed["keys_required"] and [each["name"] for each in listed["data"]] == ["ann"]


async def test_the_first_client_closes_an_open_server(backend: FakeBackend) -> None:
    async with client_of(create_app(backend, ServerSettings())) as http:
        assert (await http.post(CHAT_URL, json=CHAT)).status_code == 200
        assert not (await http.get(CLIENTS)).json()["keys_required"]
        made = (await http.post(CLIENTS, json={"name": "ann"})).json()
        assert "every caller needs a key" in made["note"]
        assert (await http.post(CHAT_URL, json=CHAT)).status_code == 401
        assert (await ask(http, made["key"])).status_code == 200
        await http.delete(f"{CLIENTS}/ann")
        assert (await http.post(CHAT_URL, json=CHAT)).status_code == 401
        assert (await http.get("/v1/status")).status_code == 401


async def test_labels_stay_bounded_while_clients_come_and_go(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(max_client_labels=3), clock=(clock := VirtualClock()))

    async def labels(http: httpx.AsyncClient) -> list[str]:
        """Of everything on the page that names a client."""
        clock.advance(1)
        page = (await http.get("/metrics")).text
        return sorted(set(re.findall(r'client="([^"]*)"', page)))

    async with client_of(app) as http:
        for number in range(9):
            name = f"c{number}"
            made = (await http.post(CLIENTS, json={"name": name})).json()
            assert (await ask(http, made["key"])).status_code == 200
            backend.clients.append(ClientStats(name, service=1.0, waiting=1))
            assert name in await labels(http)
            await http.delete(f"{CLIENTS}/{name}")
            # Its worker speaks of it for a while.
            assert await labels(http) == ["other"]
        for name in ("c1", *"xyz"):
            key = (await http.post(CLIENTS, json={"name": name})).json()["key"]
            await ask(http, key)
        assert await labels(http) == ["c1", "other", "x", "y"]
