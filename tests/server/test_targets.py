"""Targets on their way: from a request's fields to the engine, and from its counts to the page."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from tenfold.client.http import _body
from tenfold.core.messages import DeviceStats, ModelStats
from tenfold.core.types import SamplingParams
from tenfold.fleet.calls import engine_requests
from tenfold.fleet.types import GenerateRequest, TextPrompt
from tenfold.server.worker_metrics import WorkerCollector


def request(**fields: float) -> GenerateRequest:
    return GenerateRequest("r", "m", "c", TextPrompt("a"), SamplingParams(n=2), **fields)  # type: ignore[arg-type]


def test_every_choice_has_the_request_s_targets() -> None:
    asked = request(ttft_target=0.5, itl_target=0.05)
    sends = engine_requests(asked, [1, 2], None, 3.0, ["r.0", "r.1"])
    assert [(send.ttft_target, send.itl_target) for send in sends] == [(0.5, 0.05)] * 2


def test_the_http_client_sends_them_where_they_are_set() -> None:
    body = _body(request(ttft_target=0.5, itl_target=0.05))
    assert (body["ttft_target"], body["tpot_target"]) == (0.5, 0.05)
    assert not {"ttft_target", "tpot_target"} & _body(request()).keys()


def test_attainment_is_on_the_metrics_page() -> None:
    model = ModelStats(
        "m",
        "ready",
        ttft_met=7,
        ttft_missed=2,
        tpot_met=5,
        tpot_missed=1,
        both_met=4,
        deferred=3,
    )
    device = DeviceStats("s", "cpu:0", 4096, 10, 5, 0, 0, models=[model])
    collector = WorkerCollector()
    collector.update([device], [], True)
    registry = CollectorRegistry()
    registry.register(collector)
    page = generate_latest(registry).decode().splitlines()
    where = 'device="cpu:0",model="m"'
    for line in (
        f'tenfold_ttft_target_requests_total{{{where},outcome="met"}} 7.0',
        f'tenfold_ttft_target_requests_total{{{where},outcome="missed"}} 2.0',
        f'tenfold_tpot_target_requests_total{{{where},outcome="met"}} 5.0',
        f'tenfold_tpot_target_requests_total{{{where},outcome="missed"}} 1.0',
        f"tenfold_targets_met_requests_total{{{where}}} 4.0",
        f"tenfold_requests_deferred{{{where}}} 3.0",
    ):
        assert line in page
