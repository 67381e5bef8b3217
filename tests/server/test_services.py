"""Service of clients: counted over restarts, under bounded labels, as shares and evenness."""

from __future__ import annotations

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT, client_of, tenants_of
from test_metrics_page import get, scrape

from tenfold.core.clock import VirtualClock
from tenfold.core.keys import hash_key
from tenfold.core.messages import ClientStats, DeviceStats
from tenfold.server.app import create_app
from tenfold.server.clients import OTHER, ClientBook
from tenfold.server.service_book import ServiceBook
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio


def client(name: str, service: float = 0.0, **fields: float) -> ClientStats:
    return ClientStats(name, service, **{"asked_service": 2 * service, **fields})  # type: ignore[arg-type]


def device(*clients: ClientStats, name: str = "cpu:0") -> DeviceStats:
    return DeviceStats("s", name, 1, 1, 0, 0, 0, clients=list(clients))


def book(limit: int = 10) -> ServiceBook:
    return ServiceBook(ClientBook(limit))


def test_counts_go_on_where_a_worker_begins_anew() -> None:
    services = book()
    for at, served in enumerate((100.0, 130.0, 20.0, 25.0)):
        services.take([device(client("ann", served)), device(client("ann", 1.0), name="b")], at)
    row = services.rows()["ann"]
    assert row.totals.service == 130 + 25 + 1
    assert row.totals.asked_service == 2 * row.totals.service
    services.take([device(), device(name="b")], 9.0)
    assert services.rows()["ann"].totals.service == 156, "a client that is not told of keeps its"
    services.take([device(client("ann", 30.0)), device(name="b")], 10.0)
    assert services.rows()["ann"].totals.service == 161


def test_clients_past_the_limit_are_one() -> None:
    services = book(limit=1)
    crowd = [
        client(
            f"c{n}", 10.0 * n, waiting=1, oldest_wait=n, credit=5.0 - n, drift=n - 8.0, bound=10.0
        )
        for n in range(10)
    ]
    services.take([device(client("ann", 5.0), *crowd)], 0.0)
    rows = services.rows()
    assert rows.keys() == {"ann", OTHER}
    other = rows[OTHER]
    assert (other.totals.service, other.waiting, other.oldest_wait) == (450.0, 10, 9.0)
    assert (other.credit, other.drift) == (-4.0, -0.8)
    standing = services.standings()[OTHER, "cpu:0"]
    assert (standing.credit, standing.drift) == (-4.0, -0.8)


def test_shares_are_of_the_last_seconds() -> None:
    services = book()
    served = {"ann": 1000.0, "bob": 0.0}
    for second in range(30):
        served["ann"] += 3.0 if second > 15 else 50.0
        served["bob"] += 1.0
        both = [client(name, service, fair=0.5) for name, service in served.items()]
        services.take([device(*both), device(client("ann", 7.0, fair=1.0), name="b")], second)
    rows = services.rows()
    assert (rows["ann"].share, rows["bob"].share) == (0.75, 0.25)
    assert (rows["ann"].fair, rows["bob"].fair) == (0.5, 0.5), "nobody was served on b"
    merged = services.rows(lambda name: "all")["all"]
    assert (merged.share, merged.fair) == (1.0, 1.0)
    services.take([device(client("ann", 3.0), client("new", 1.0))], 30.0)
    assert services.rows()["ann"].share == 1.0, "a new worker's count is what it gave"
    services.take([device(client("ann", 3.0), client("new", 2.0))], 50.0)
    services.take([device(client("ann", 3.0), client("new", 2.0))], 70.0)
    assert services.rows()["new"].share is None


def test_evenness_is_of_those_that_waited_all_the_time() -> None:
    def jain(idle_at: int, seconds: int = 60) -> dict[str, float]:
        services = book()
        for second in range(0, seconds, 2):
            given = {"ann": 4.0, "bob": 2.0, "eve": 100.0}
            waiting = {"ann": 1, "bob": 3, "eve": int(second != idle_at)}
            rows = [
                client(
                    name,
                    500 + each * second,
                    waiting=waiting[name],
                    fair=each / 6 if name != "eve" else 0.2,
                )
                for name, each in given.items()
            ]
            services.take([device(*rows)], second)
        return {row.service: row.value for row in services.jain()}

    assert jain(idle_at=30) == pytest.approx({"computed": 1.0, "asked": 1.0})
    assert jain(idle_at=1000)["computed"] < 0.5
    assert jain(idle_at=2, seconds=100)["computed"] < 0.5, "that was more than a minute ago"
    assert list(book().jain()) == []


async def test_clients_on_the_metrics_page(backend: FakeBackend) -> None:
    backend.clients = [
        client(
            "ann", 40.0, waiting=2, running=1, oldest_wait=1.5, credit=-3.0, drift=-5.0, bound=20.0
        ),
        *(client(f"u{number}", 10.0, credit=float(number)) for number in range(50)),
    ]
    app = create_app(backend, ServerSettings(max_client_labels=3))
    async with client_of(app) as asking:
        await asking.post("/v1/chat/completions", json={**CHAT, "user": "ann"})
        for number in range(20):
            await asking.post("/v1/chat/completions", json={**CHAT, "user": f"w{number}"})
        found = await scrape(asking)
    labels = {dict(pairs)["client"] for _, pairs in found if "client" in dict(pairs)}
    assert len(labels) <= 4 and {"ann", OTHER} <= labels
    assert get(found, "tenfold_client_service_total", client="ann") == 40
    assert get(found, "tenfold_client_asked_service_total", client="ann") == 80
    named = sum(
        value for (name, _), value in found.items() if name == "tenfold_client_service_total"
    )
    assert named == 40 + 50 * 10
    assert get(found, "tenfold_client_waiting", client="ann") == 2
    assert get(found, "tenfold_client_running", client="ann") == 1
    assert get(found, "tenfold_client_oldest_wait_seconds", client="ann") == 1.5
    assert get(found, "tenfold_client_credit", client="ann", device="cpu:0") == -3
    assert get(found, "tenfold_client_drift_ratio", client="ann", device="cpu:0") == 0.25
    assert get(found, "tenfold_client_queue_seconds_sum", client="ann") == 0.25
    assert get(found, "tenfold_refill_rounds_total", device="cpu:0") == 7
    assert not any(name == "tenfold_jain_index" for name, _ in found)


async def test_evenness_on_the_page_and_in_the_status(backend: FakeBackend) -> None:
    clock = VirtualClock()
    app = create_app(backend, ServerSettings(), clock=clock)
    async with client_of(app) as asking:
        for served in (0.0, 30.0):
            backend.clients = [
                client("ann", served, waiting=1, fair=0.5, drift=3.0, bound=4.0, prompt_tokens=4),
                client("bob", 3 * served, waiting=1, fair=0.5, cached_tokens=1),
            ]
            status = (await asking.get("/v1/status")).json()
            clock.advance(5.0)
        found = await scrape(asking)
    assert get(found, "tenfold_jain_index", device="cpu:0", service="computed") == pytest.approx(
        0.8
    )
    assert status["devices"][0]["jain"] == pytest.approx(0.8)
    assert status["devices"][0]["rounds"] == 7
    ann, bob = sorted(status["clients"], key=lambda row: row["name"])
    assert (ann["share"], ann["fair"], bob["share"], bob["fair"]) == (0.25, 0.5, 0.75, 0.5)
    assert (ann["drift"], ann["hit_rate"], bob["hit_rate"]) == (0.75, 0.0, None)


async def test_what_others_get_is_one_row_for_a_client(backend: FakeBackend) -> None:
    backend.clients = [client(name, 10.0, waiting=1) for name in ("ann", "bob", "eve")]
    settings = ServerSettings(admin_key_sha256=hash_key("root"))
    app = create_app(backend, settings, tenants_of(ann="a"))
    seen = {}
    async with client_of(app) as asking:
        for key in ("a", "root"):
            headers = {"Authorization": f"Bearer {key}"}
            reply = await asking.get("/v1/status", headers=headers)
            seen[key] = {row["name"]: row["waiting"] for row in reply.json()["clients"]}
            assert ("eve" in reply.text) == (key == "root")
    assert seen["a"] == {"ann": 1, "(other clients)": 2}
    assert seen["root"] == {"ann": 1, "bob": 1, "eve": 1}


# --- why --------------------------------------------------------------------------------------
async def test_schedule(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    from tenfold.server.protocol.admin import ScheduleReply

    body = (await client.get("/v1/admin/schedule")).json()
    ScheduleReply.model_validate(body)
    assert [(row["device"], row["model"]) for row in body["data"]] == [
        ("cpu:0", "tiny"),
        ("cpu:0", "base"),
    ]
    assert backend.most == 20
    (row,) = (await client.get("/v1/admin/schedule?model=base&most=2")).json()["data"]
    assert (row["model"], row["policy"], row["waiting"], len(row["next"])) == ("base", "dlpm", 3, 2)
    assert row["chosen"][0]["why"] == "32 of 40 prompt tokens are cached"
    assert (await client.get("/v1/admin/schedule?model=embedder")).json()["data"] == []


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("most=0", 400, "most"),
        ("most=1001", 400, "most"),
        ("most=x", 400, "most"),
        ("model=nope", 404, "model"),
    ],
)
async def test_schedule_refused(
    client: httpx.AsyncClient, query: str, status: int, param: str
) -> None:
    reply = await client.get(f"/v1/admin/schedule?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


async def test_schedule_is_for_administrators(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(), tenants_of(ann="a"))
    async with client_of(app, Authorization="Bearer a") as asking:
        assert (await asking.get("/v1/admin/schedule")).status_code == 403
