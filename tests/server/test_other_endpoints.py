"""Embeddings, models, tokens, health, status and admin over the fake backend."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from loopback import CHAT, client_of, tenants_of

from tenfold.core.errors import Conflict, ModelFileError
from tenfold.core.keys import hash_key
from tenfold.server.app import create_app
from tenfold.server.protocol.admin import QueueReply, StatsReply
from tenfold.server.protocol.embeddings import EmbeddingList
from tenfold.server.protocol.models import ModelList
from tenfold.server.protocol.residency import AdminModelList
from tenfold.server.protocol.status import StatusReply
from tenfold.server.protocol.workers import WorkerList
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
VECTOR = [0.5, 0.5, -0.5, 0.5]


# --- embeddings -------------------------------------------------------------------------------
@pytest.mark.parametrize("given", ["ab", ["ab", "c"], [1, 2], [[1], [2, 3]]])
async def test_embeddings(client: httpx.AsyncClient, backend: FakeBackend, given: Any) -> None:
    body = {"model": "embedder", "input": given, "user": "ann", "dimensions": 4}
    reply = await client.post("/v1/embeddings", json=body)
    assert reply.status_code == 200, reply.text
    EmbeddingList.model_validate(reply.json())
    assert [entry["embedding"] for entry in reply.json()["data"]] == [VECTOR] * (
        2 if given in (["ab", "c"], [[1], [2, 3]]) else 1
    )
    assert backend.embedded[0][2] == "ann"


async def test_embeddings_base64(client: httpx.AsyncClient) -> None:
    body = {"model": "embedder", "input": "x", "encoding_format": "base64"}
    data = (await client.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"]
    assert list(struct.unpack("<4f", base64.b64decode(data))) == VECTOR


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 3}, "dimensions"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"model": "tiny"}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_embeddings_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    reply = await client.post("/v1/embeddings", json={"model": "embedder", "input": "x", **fields})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


# --- models -----------------------------------------------------------------------------------
async def test_models(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await backend.load("org/name", source="path:/x")
    listed = (await client.get("/v1/models")).json()
    ModelList.model_validate(listed)
    assert [model["id"] for model in listed["data"]] == ["tiny", "base", "embedder", "org/name"]
    assert (await client.get("/v1/models/org/name")).json() == listed["data"][3]
    missing = await client.get("/v1/models/nope")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert "tiny" in missing.json()["error"]["message"]


# --- tokens -----------------------------------------------------------------------------------
async def test_tokenize(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "Hi", "return_token_strs": True}
    assert (await client.post("/tokenize", json=body)).json() == {
        "count": 3,
        "max_model_len": 2048,
        "tokens": [1, 72, 105],
        "token_strs": ["\x01", "H", "i"],
    }
    body = {"model": "tiny", "prompt": "Hi", "add_special_tokens": False}
    assert (await client.post("/tokenize", json=body)).json()["tokens"] == [72, 105]
    reply = await client.post("/tokenize", json=CHAT)
    assert reply.json()["tokens"] == [ord(letter) for letter in "<user>Hi"]


async def test_detokenize(client: httpx.AsyncClient) -> None:
    reply = await client.post("/detokenize", json={"model": "tiny", "tokens": [72, 105]})
    assert reply.json() == {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "Hi"}),
        ("/tokenize", {"model": "tiny"}),
        ("/tokenize", {**CHAT, "prompt": "Hi"}),
        ("/tokenize", {**CHAT, "model": "base"}),
        ("/detokenize", {"model": "tiny", "tokens": [0x110000]}),
        ("/detokenize", {"model": "tiny", "tokens": [-1]}),
    ],
)
async def test_tokens_refused(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    assert (await client.post(path, json=body)).status_code == 400


async def test_the_only_model_needs_no_name(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for name in ("base", "embedder"):
        await backend.unload(name)
    assert (await client.post("/tokenize", json={"prompt": "Hi"})).json()["count"] == 3


# --- health and status ------------------------------------------------------------------------
async def test_health_and_ready(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json()["models"] == ["tiny", "base", "embedder"]
    backend.is_ready = False
    waiting = await client.get("/ready")
    assert (waiting.status_code, "Retry-After" in waiting.headers) == (503, True)
    assert (await client.get("/health")).status_code == 200
    assert set((await client.get("/version")).json()) == {"version"}


async def test_status(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json={**CHAT, "user": "ann"})
    body = (await client.get("/v1/status")).json()
    StatusReply.model_validate(body)
    assert body["models"][0]["weight_pages"] == 40
    assert body["devices"][0]["capacity_pages"] == 400
    assert body["devices"][0]["scratch_pages"] == 3
    (ann,) = body["clients"]
    counted = {"name": "ann", "live": 0, "requests": 1, "prompt_tokens": 8, "completion_tokens": 4}
    assert counted.items() <= ann.items()
    assert body["generated_tokens"] > 0


async def test_status_hides_other_clients(backend: FakeBackend) -> None:
    settings = ServerSettings(admin_key_sha256=hash_key("root"))
    app = create_app(backend, settings, tenants_of(ann="a", bob="b"))
    async with client_of(app) as client:
        for key in "ab":
            headers = {"Authorization": f"Bearer {key}"}
            await client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert (await client.get("/v1/status")).status_code == 401
        seen = {}
        for key in ("a", "root"):
            headers = {"Authorization": f"Bearer {key}"}
            rows = (await client.get("/v1/status", headers=headers)).json()["clients"]
            seen[key] = {row["name"] for row in rows}
    assert seen == {"a": {"ann", "(other clients)"}, "root": {"ann", "bob"}}


# --- admin ------------------------------------------------------------------------------------
async def test_admin_models(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    loaded = await client.post("/v1/admin/models/org/new/load", json={"source": "path:/x"})
    assert loaded.json()["id"] == "org/new"
    pinned = await client.post("/v1/admin/models/org/new/pin")
    assert pinned.json()["pinned"] is True
    refused = await client.post("/v1/admin/models/org/new/unload")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    unpinned = await client.post("/v1/admin/models/org/new/pin", json={"pinned": False})
    assert unpinned.json()["pinned"] is False
    gone = await client.post("/v1/admin/models/org/new/unload", json={"force": True})
    assert gone.json() == {"id": "org/new", "unloaded": True}
    assert "org/new" not in backend.served
    listed = (await client.get("/v1/admin/models")).json()
    AdminModelList.model_validate(listed)
    assert (await client.post("/v1/admin/models/nope/load")).status_code == 404


@pytest.mark.parametrize(
    ("error", "status"), [(ModelFileError("truncated"), 422), (Conflict("loading"), 409)]
)
async def test_load_errors(
    client: httpx.AsyncClient, backend: FakeBackend, error: Exception, status: int
) -> None:
    backend.fail = error
    assert (await client.post("/v1/admin/models/x/load")).status_code == status


async def test_queue_and_stats(client: httpx.AsyncClient) -> None:
    queue = (await client.get("/v1/admin/queue")).json()
    QueueReply.model_validate(queue)
    assert queue["data"] == []
    stats = (await client.get("/v1/admin/stats")).json()
    StatsReply.model_validate(stats)
    assert stats["data"][0]["models"][0]["preemptions"] == 3


async def test_drain(app: FastAPI, client: httpx.AsyncClient, backend: FakeBackend) -> None:
    reply = await client.post("/v1/admin/drain", json={"wait": True})
    assert reply.json() == {"status": "drained"}
    assert backend.drained.is_set()
    ready = await client.get("/ready")
    assert (ready.status_code, "draining" in ready.json()["error"]["message"]) == (503, True)
    refused = await client.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert (await client.post("/v1/admin/drain")).json() == {"status": "drained"}


async def test_workers_are_listed_drained_and_taken_back(client: httpx.AsyncClient) -> None:
    (worker,) = WorkerList.model_validate((await client.get("/v1/admin/workers")).json()).data
    assert (worker.id, worker.state, worker.draining) == ("cpu:0", "up", False)
    for action, draining in (("drain", True), ("resume", False)):
        reply = await client.post(f"/v1/admin/workers/cpu:0/{action}")
        assert reply.status_code == 200 and reply.json()["draining"] is draining
        listed = (await client.get("/v1/admin/workers")).json()
        assert listed["data"][0]["draining"] is draining
    unknown = await client.post("/v1/admin/workers/cpu:7/drain", json={})
    assert unknown.status_code == 404 and "there are cpu:0" in unknown.json()["error"]["message"]
