"""Two models in one server under load: each answers as if it were alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from e2e.serving import SMALL, Server, children, serve
from e2e.sse import stream


class Ask(NamedTuple):
    model: str
    prompt: list[int]
    tokens: int
    fields: dict[str, Any]


def asks() -> list[Ask]:
    """Greedy and seeded, long and short, some with a common beginning."""
    rng = random.Random(4)
    shared = [rng.randrange(3, 300) for _ in range(100)]
    made = []
    for number in range(24):
        own = [rng.randrange(3, 300) for _ in range(rng.randrange(1, 200))]
        prompt = shared + own if number % 3 == 0 else own
        fields = {"temperature": 0.8, "seed": number, "top_p": 0.9} if number % 2 else {}
        made.append(Ask(("tiny", "other")[number // 2 % 2], prompt, rng.randrange(5, 60), fields))
    return made


@pytest.fixture(scope="module")
def server(
    tiny: Mapping[str, Path], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Little memory and short steps: prompts run in chunks, sequences give way."""
    sets = (*SMALL, "device.memory=1920KiB", "device.max_step_tokens=64")
    with serve(tmp_path_factory.mktemp("server"), home, tiny, *sets, words=("--exact",)) as made:
        yield made


def answer(server: Server, ask: Ask) -> str:
    return server.complete(ask.model, ask.prompt, ask.tokens, **ask.fields)


def streamed(server: Server, ask: Ask) -> str:
    with stream(server, ask.model, ask.prompt, ask.tokens, **ask.fields) as events:
        return "".join(event.text for event in events)


def test_together_as_alone(server: Server) -> None:
    """The same words whether a request runs by itself or among others of both models."""
    alone = [answer(server, ask) for ask in asks()]
    ways = itertools.cycle((answer, streamed))
    with ThreadPoolExecutor(24) as pool:
        jobs = [pool.submit(way, server, ask) for way, ask in zip(ways, asks(), strict=False)]
        together = [job.result() for job in jobs]
    assert together == alone
    models = {model["name"]: model for model in server.settled()["models"]}
    assert models["tiny"]["cached_tokens"] > 0


def test_embeddings_come_between(server: Server) -> None:
    texts = ["the cat", "sat on", "the mat"]
    alone = server.post("/v1/embeddings", model="embedder", input=texts)["data"]
    with stream(server, "tiny", "go on", 2000) as events:
        next(events)
        for _ in range(5):
            assert server.post("/v1/embeddings", model="embedder", input=texts)["data"] == alone
    server.settled()


def test_pages_are_counted_for_each(server: Server) -> None:
    status = server.get("/v1/status")
    models = {model["name"]: model for model in status["models"]}
    assert all(model["weight_pages"] > 0 for model in models.values())
    assert models["embedder"]["kv_pages"] == 0
    (device,) = status["devices"]
    used = sum(model["weight_pages"] + model["kv_pages"] for model in models.values())
    assert device["scratch_pages"] > 0
    assert used + device["scratch_pages"] == device["mapped_pages"] <= device["capacity_pages"]
    page = server.http.get("/metrics").text
    for name in models:
        assert f'model="{name}"' in page


def test_the_serving_process_has_no_torch(server: Server) -> None:
    def libraries(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "libtorch" not in libraries(server.process.pid)
    assert "libtorch" in libraries(server.worker)
    assert children(server.worker) == []
