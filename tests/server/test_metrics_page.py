"""/metrics and the log line: what is counted, under which names."""

from __future__ import annotations

import json

import httpx
import pytest
from fake_backend import FakeBackend
from loopback import CHAT, client_of
from prometheus_client.parser import text_string_to_metric_families

from tenfold.core import metric_names
from tenfold.core.errors import Overloaded
from tenfold.core.types import Usage
from tenfold.fleet.types import ChoiceEnd, Delta, Finished
from tenfold.server.app import create_app
from tenfold.server.clients import OTHER, ClientBook
from tenfold.server.record import RequestRecord, log_line
from tenfold.server.settings import ServerSettings

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(client: httpx.AsyncClient) -> Samples:
    reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def get(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def test_own_names(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.post(URL, json={**CHAT, "user": "ann"})
    await client.post(URL, json={**CHAT, "user": "ann", "stream": True})
    await client.post(URL, json={**CHAT, "model": "nope"})
    backend.fail = Overloaded("full")
    await client.post(URL, json=CHAT)
    found = await scrape(client)
    who = {"model": "tiny", "client": "ann"}
    assert get(found, "tenfold_requests_finished_total", **who, finish="stop") == 2
    assert get(found, "tenfold_prompt_tokens_total", **who) == 16
    assert get(found, "tenfold_cached_tokens_total", **who) == 4
    assert get(found, "tenfold_completion_tokens_total", **who) == 8
    rejected = {"model": "tiny", "client": "anonymous"}
    assert get(found, "tenfold_requests_rejected_total", **rejected) == 1
    failed = {"model": "", "client": "anonymous", "code": "model_not_found"}
    assert get(found, "tenfold_requests_failed_total", **failed) == 1
    assert get(found, "tenfold_http_responses_total", route=URL, status="200") == 2
    for name in ("time_to_first_token", "queue", "prefill", "decode", "request"):
        assert get(found, f"tenfold_{name}_seconds_count", model="tiny") == 2
    assert get(found, "tenfold_inter_token_seconds_count", model="tiny") == 6
    assert get(found, "tenfold_queue_seconds_sum", model="tiny") == 0.5
    assert get(found, "tenfold_kv_usage_ratio", model="tiny") == 0.25
    assert get(found, "tenfold_model_pages", model="base", device="cpu:0", what="kv") == 20
    assert get(found, "tenfold_model_state", model="base", state="ready") == 1
    assert get(found, "tenfold_preemptions_total", model="tiny", device="cpu:0") == 3
    assert get(found, "tenfold_drafted_tokens_total", model="tiny", device="cpu:0") == 9
    assert get(found, "tenfold_accepted_tokens_total", model="tiny", device="cpu:0") == 5
    assert get(found, "tenfold_device_pages", device="cpu:0", what="capacity") == 400
    assert get(found, "tenfold_device_pages", device="cpu:0", what="scratch") == 3
    assert get(found, "tenfold_ready") == 1
    assert not any(name.endswith("_created") or ":" in name for name, _ in found)


async def test_memory(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await backend.sleep("base")
    backend.served["tiny"].migrations = 2
    found = await scrape(client)
    tiny, base = ({"model": name, "device": "cpu:0"} for name in ("tiny", "base"))
    for what, pages in (("weights", 40), ("kv", 10), ("cached", 5), ("image", 40)):
        assert get(found, "tenfold_model_pages", **tiny, what=what) == pages
    assert get(found, "tenfold_model_limit_pages", **tiny) == 90
    assert ("tenfold_model_limit_pages", tuple(sorted(base.items()))) not in found
    assert get(found, "tenfold_model_residency", **tiny, state="resident") == 1
    assert get(found, "tenfold_model_residency", **base, state="resident") == 0
    assert get(found, "tenfold_model_residency", **base, state="host") == 1
    assert get(found, "tenfold_model_wakes_total", **tiny) == 4
    assert get(found, "tenfold_model_sleeps_total", **tiny) == 3
    assert get(found, "tenfold_model_wake_seconds", **tiny) == 0.25
    assert get(found, "tenfold_model_migrations_total", model="tiny") == 2
    device = {"device": "cpu:0"}
    assert get(found, "tenfold_kv_fragmentation_ratio", **device) == 60 * 2 / 40
    assert get(found, "tenfold_kv_pressure_ratio", **device) == 0.75
    assert get(found, "tenfold_page_calls_total", **device, call="unmap") == 60
    assert get(found, "tenfold_page_seconds", **device, call="map", quantile="0.99") == 2e-5
    assert get(found, "tenfold_memory_decisions_total", **device, kind="preempt") == 2


async def test_every_name_of_the_table_is_shown(client: httpx.AsyncClient) -> None:
    page = (await client.get("/metrics")).text
    for entry in metric_names.TABLE:
        assert f"# HELP {entry.name}" in page


async def test_vllm_names(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(metrics_compat="vllm"))
    async with client_of(app) as client:
        for user in ("ann", "bob"):
            await client.post(URL, json={**CHAT, "user": user})
        found = await scrape(client)
    tiny = {"model_name": "tiny", "engine": "0"}
    assert get(found, "vllm:generation_tokens_total", **tiny) == 8
    assert get(found, "vllm:prompt_tokens_total", **tiny) == 16
    assert get(found, "vllm:prefix_cache_hits_total", **tiny) == 4
    assert get(found, "vllm:request_success_total", **tiny, finished_reason="stop") == 2
    assert get(found, "vllm:num_requests_waiting", **tiny) == 1
    assert get(found, "vllm:kv_cache_usage_perc", **tiny) == 0.25
    assert get(found, "vllm:time_to_first_token_seconds_count", **tiny) == 2
    assert get(found, "vllm:time_to_first_token_seconds_bucket", **tiny, le="+Inf") == 2
    assert get(found, "tenfold_completion_tokens_total", model="tiny", client="ann") == 4


async def test_clients_are_bounded(backend: FakeBackend) -> None:
    app = create_app(backend, ServerSettings(max_client_labels=2))
    async with client_of(app) as client:
        for number in range(5):
            await client.post(URL, json={**CHAT, "user": f"u{number}"})
        found = await scrape(client)
        rows = (await client.get("/v1/status")).json()["clients"]
    name = "tenfold_requests_finished_total"
    assert get(found, name, model="tiny", client=OTHER, finish="stop") == 3
    assert sorted(row["name"] for row in rows) == [OTHER, "u0", "u1"]


def test_book() -> None:
    book = ClientBook(1)
    assert [book.label(name) for name in ("a", "b", "a", "c")] == ["a", OTHER, "a", OTHER]
    book.totals("b").requests += 1
    book.totals("c").requests += 1
    assert book.lines()[OTHER].requests == 2


async def test_a_dead_worker_leaves_old_numbers(
    client: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await scrape(client)

    async def broken() -> list[object]:
        raise TimeoutError

    monkeypatch.setattr(backend, "stats", broken)
    assert get(await scrape(client), "tenfold_steps_total", model="tiny", device="cpu:0") == get(
        before, "tenfold_steps_total", model="tiny", device="cpu:0"
    )


async def test_log_line(client: httpx.AsyncClient, request_lines: list[str]) -> None:
    headers = {"X-Request-Id": "r1"}
    await client.post(URL, json={**CHAT, "user": "ann", "stream": True}, headers=headers)
    await client.post(URL, json={"model": "tiny"}, headers=headers)
    await client.get("/v1/models")
    done, refused = map(json.loads, request_lines)
    assert done == {
        "event": "request",
        "id": "r1",
        "client": "ann",
        "model": "tiny",
        "path": URL,
        "status": 200,
        "stream": True,
        "prompt_tokens": 8,
        "completion_tokens": 4,
        "cached_tokens": 2,
        "queue_ms": 250.0,
        "ttft_ms": done["ttft_ms"],
        "total_ms": done["total_ms"],
        "finish": "stop",
        "error": None,
    }
    assert 0 <= done["ttft_ms"] <= done["total_ms"]
    assert (refused["status"], refused["error"]) == (400, "invalid_request_error")


def test_text_lines_stay_one_line() -> None:
    fields = {"id": "a b", "client": 'x"y', "model": "é\n", "n": 3, "none": None, "empty": ""}
    line = log_line(fields, "text")
    assert line == ('request id="a b" client="x\\"y" model="\\u00e9\\n" n=3 none=- empty=""')


def test_record_times_choices_apart() -> None:
    record = RequestRecord("r", "POST", "/", 0.0)
    assert record.saw(Delta(0, token_ids=[1]), 1.0) is None
    assert record.saw(Delta(1, token_ids=[1]), 2.0) is None
    assert record.saw(Delta(0, token_ids=[1, 2]), 4.0) == 3.0
    assert record.saw(Delta(0, "held back"), 5.0) is None
    record.saw(ChoiceEnd(0, "stop"), 5.0)
    record.saw(ChoiceEnd(1, "length"), 5.0)
    assert (record.first, record.last, record.usage.completion_tokens) == (1.0, 4.0, 4)
    record.saw(Finished(Usage(3, 4), 0.5), 6.0)
    assert (record.finish, record.queue_seconds) == ("length,stop", 0.5)
