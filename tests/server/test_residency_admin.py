"""Sleep, wake, limits, memory and decisions over HTTP; keep_alive of requests."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT, client_of, tenants_of

from tenfold.core.clock import Clock
from tenfold.core.errors import DeadlineExceeded, OutOfMemory, TenfoldError, Unavailable
from tenfold.core.keys import hash_key
from tenfold.fleet.types import MemoryDecision
from tenfold.server.app import create_app
from tenfold.server.memory import DecisionCache
from tenfold.server.protocol.models import AdminModelReply
from tenfold.server.protocol.residency import AdminModelList, DecisionsReply, MemoryReply
from tenfold.server.protocol.status import StatusReply
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
ADMIN = "/v1/admin/models"
LOG = [
    MemoryDecision("cpu:0", "wake", "tiny", "2 requests wait", 1.5, 40, 0.2),
    MemoryDecision("cpu:0", "limit", "base", "3 models are awake", 3.0, 40),
    MemoryDecision("fleet", "migrate", "tiny", "from cpu:0 to cpu:1", 9.0),
]


async def test_sleep_and_wake(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"to": "cold", "force": True, "hold": True}
    reply = await client.post(f"{ADMIN}/tiny/sleep", json=body)
    assert reply.status_code == 200
    AdminModelReply.model_validate(reply.json())
    told = reply.json()
    assert (told["residency"], told["held"], told["status"]) == ({"cpu:0": "cold"}, True, "ready")
    reply = await client.post(f"{ADMIN}/tiny/sleep")
    assert reply.json()["residency"] == {"cpu:0": "host"}
    assert [each[2] for each in backend.told] == [("cold", True, True), ("host", False, False)]
    reply = await client.post(f"{ADMIN}/tiny/wake", json={"x": 1})
    assert reply.json()["residency"] == {"cpu:0": "resident"}
    assert reply.headers["X-Tenfold-Ignored"] == "x"


@pytest.mark.parametrize(
    ("error", "status"),
    [(DeadlineExceeded("busy"), 504), (OutOfMemory("full"), 507), (Unavailable("away"), 503)],
)
async def test_what_keeps_a_model_from_moving(
    client: httpx.AsyncClient, backend: FakeBackend, error: TenfoldError, status: int
) -> None:
    backend.fail = error
    for action in ("sleep", "wake"):
        reply = await client.post(f"{ADMIN}/tiny/{action}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, error.code)


async def test_refusals(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for action in ("sleep", "wake", "limit"):
        reply = await client.post(f"{ADMIN}/no/such/{action}", json={"limit": 1})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert (await client.patch(f"{ADMIN}/nope/residency", json={})).status_code == 404
    backend.pin("tiny", True)
    assert (await client.post(f"{ADMIN}/tiny/sleep")).status_code == 409
    assert (await client.post(f"{ADMIN}/tiny/sleep", json={"force": True})).status_code == 200
    assert (await client.post(f"{ADMIN}/tiny/limit", json={})).status_code == 400
    for body, param in (
        ({"ttl": "soon"}, "ttl"),
        ({"ttl": -1}, "ttl"),
        ({"floor": "lots"}, "floor"),
        ({"limit": 1.5}, "limit"),
        ({"limit": -1}, "limit"),
        ({"evict_cost": -1}, "evict_cost"),
        ({"pinned": "yes"}, "pinned"),
        ({"tll": 1}, "tll"),
    ):
        reply = await client.patch(f"{ADMIN}/tiny/residency", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_changes(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for body, sent in (
        ({"limit": "512MiB"}, {"limit": 512 << 20}),
        ({"limit": 10}, {"limit": 10}),
        ({"limit": None}, {"limit": -1}),
    ):
        assert (await client.post(f"{ADMIN}/tiny/limit", json=body)).status_code == 200
        assert backend.told.pop() == ("residency", "tiny", sent)
    for body, sent in (
        ({"ttl": "1h30m", "floor": "1GiB"}, {"ttl": 5400.0, "floor": 1 << 30}),
        ({"pinned": True, "evict_cost": 2}, {"pinned": True, "evict_cost": 2}),
        (
            dict.fromkeys(("pinned", "ttl", "floor", "limit", "evict_cost")),
            {"pinned": False, "ttl": -1.0, "floor": 0, "limit": -1, "evict_cost": 1.0},
        ),
        ({}, {}),
    ):
        assert (await client.patch(f"{ADMIN}/tiny/residency", json=body)).status_code == 200
        assert backend.told.pop() == ("residency", "tiny", sent)


async def test_models_and_memory(client: httpx.AsyncClient) -> None:
    listed = (await client.get(ADMIN)).json()
    AdminModelList.model_validate(listed)
    (place,) = listed["data"][0]["places"]
    assert (place["device"], place["limit_pages"], place["sleeps_in"]) == ("cpu:0", 90, 32.5)
    memory = (await client.get("/v1/admin/memory")).json()
    MemoryReply.model_validate(memory)
    (device,) = memory["data"]
    assert (device["virtual_bytes"], device["fragmentation"]) == (1 << 40, 3.0)
    assert device["unmap_seconds"] == {"count": 60, "p50": 3e-5, "p99": 4e-5}
    assert [each["model"] for each in device["models"]] == ["tiny", "base", "embedder"]


async def test_decisions(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.log = LOG
    for query, models in (
        ("", ["tiny", "base", "tiny"]),
        ("?most=2", ["tiny", "base"]),
        ("?model=tiny&most=1", ["tiny"]),
        ("?model=tiny", ["tiny", "tiny"]),
        ("?model=gone", []),
        ("?limits=false&most=2", ["tiny", "tiny"]),
    ):
        found = (await client.get(f"/v1/admin/decisions{query}")).json()
        DecisionsReply.model_validate(found)
        assert [each["model"] for each in found["data"]] == models
    assert (await client.get("/v1/admin/decisions?most=0")).status_code == 400


async def test_status_tells_all_of_it(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.log = LOG
    await backend.sleep("tiny", "cold", hold=True)
    status = (await client.get("/v1/status")).json()
    StatusReply.model_validate(status)
    tiny = status["models"][0]
    assert (tiny["state"], tiny["residency"], tiny["held"]) == ("ready", {"cpu:0": "cold"}, True)
    assert (tiny["idle_seconds"], tiny["sleeps_in"], tiny["cached_pages"]) == (12.5, 32.5, 5)
    assert status["models"][1]["sleeps_in"] is None
    (device,) = status["devices"]
    assert (device["fragmentation"], device["pressure"]) == (3.0, 0.75)
    assert device["models"][0]["residency"] == "cold"
    assert [each["kind"] for each in status["decisions"]] == ["wake", "migrate"]


async def test_only_an_administrator_may(backend: FakeBackend) -> None:
    settings = ServerSettings(admin_key_sha256=hash_key("root"))
    async with client_of(create_app(backend, settings, tenants_of(ann="a"))) as client:
        for method, path in (
            ("POST", f"{ADMIN}/tiny/sleep"),
            ("PATCH", f"{ADMIN}/tiny/residency"),
            ("GET", "/v1/admin/memory"),
            ("GET", "/v1/admin/decisions"),
        ):
            found = [
                (await client.request(method, path, headers={"Authorization": f"Bearer {key}"}))
                for key in ("a", "b")
            ]
            assert [reply.status_code for reply in found] == [403, 401]
    assert backend.told == []


# --- keep_alive -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0.0), (-1, -1.0), (90, 90.0), (1.5, 1.5), ("5m", 300.0), ("-1", -1.0), ("250ms", 0.25)],
)
async def test_keep_alive(
    client: httpx.AsyncClient, backend: FakeBackend, given: Any, seconds: float
) -> None:
    reply = await client.post("/v1/chat/completions", json={**CHAT, "keep_alive": given})
    assert reply.status_code == 200 and "X-Tenfold-Ignored" not in reply.headers
    body = {"model": "base", "prompt": "x", "keep_alive": given}
    await client.post("/v1/completions", json=body)
    body = {"model": "embedder", "input": "x", "keep_alive": given}
    await client.post("/v1/embeddings", json=body)
    assert [request.keep_alive for request in backend.requests] == [seconds, seconds]
    assert backend.kept == [seconds]


async def test_keep_alive_is_optional_and_checked(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for given in (None, "absent"):
        body = CHAT if given else {**CHAT, "keep_alive": None}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert [request.keep_alive for request in backend.requests] == [None, None]
    for given in ("soon", "", "5 minutes", True, [], {}, 1e10, "9" * 31, "m5", "1" * 10_000):
        reply = await client.post("/v1/chat/completions", json={**CHAT, "keep_alive": given})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "keep_alive")


# --- the cache --------------------------------------------------------------------------------
class Watch(Clock):
    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at


async def test_the_log_is_asked_for_once_a_second_and_grows_older(backend: FakeBackend) -> None:
    clock, asked = Watch(), []

    class Counting(FakeBackend):
        async def decisions(self, most: int) -> list[MemoryDecision]:
            asked.append(most)
            if len(asked) == 3:
                raise Unavailable("away")
            return LOG[:1]

    cache = DecisionCache(Counting(), clock)
    ages = []
    for _ in range(4):
        ages.append((await cache.get())[0]["age"])
        clock.at += 0.75
    assert ages == [1.5, 2.25, 1.5, 2.25] and asked == [400, 400]
    clock.at += 10
    assert (await cache.get())[0]["age"] == pytest.approx(1.5 + 0.75 * 2 + 10)
