"""kill -9 to the worker process of a running server: who notices, and what comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from e2e.serving import SMALL, Server, serve, until
from e2e.sse import stream


@pytest.fixture(scope="module")
def server(
    tiny: Mapping[str, Path], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One request runs at a time, so that a second one surely waits."""
    sets = (*SMALL, "device.max_running=1")
    with serve(tmp_path_factory.mktemp("server"), home, tiny, *sets) as made:
        yield made


def kill_worker(server: Server) -> int:
    pid = server.worker
    os.kill(pid, signal.SIGKILL)
    return pid


def test_only_what_was_being_answered_is_lost(server: Server) -> None:
    expected = server.complete("tiny", "the one that waits", 12)
    with ThreadPoolExecutor() as pool:
        with stream(server, "tiny", "the one that runs", 8000) as answer:
            heard = next(answer).text + next(answer).text
            waiting = pool.submit(server.complete, "tiny", "the one that waits", 12)
            until(lambda: len(server.queue()) == 2, "a second request in the queue")
            killed = kill_worker(server)
            until(lambda: not server.ready(), "/ready turning false")
            rest = list(answer)
        assert heard
        assert rest[-1].kind == "error"
        assert rest[-1].data["error"]["code"] == "worker_lost"
        assert all(event.data != "[DONE]" for event in rest)
        assert waiting.result() == expected
    until(server.ready, "/ready turning true")  # other models take a moment longer
    assert server.worker != killed
    assert server.complete("tiny", "the one that waits", 12) == expected
    assert len(server.get("/ready")["models"]) == 3
    server.settled()


def test_a_whole_answer_starts_anew_and_what_comes_meanwhile_waits(server: Server) -> None:
    """Of an answer that does not stream nothing was sent: its client never learns of the death."""
    long = server.complete("tiny", "a whole answer", 1200)
    expected = server.complete("other", "come back", 12)
    vectors = server.post("/v1/embeddings", model="embedder", input="come back")["data"]
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(server.complete, "tiny", "a whole answer", 1200)
        until(lambda: any(call["generated"] for call in server.queue()), "a first token")
        assert not whole.done()
        kill_worker(server)
        until(lambda: not server.ready(), "/ready turning false")
        assert server.get("/health") == {"status": "ok"}
        refused = server.http.get("/ready")
        assert refused.status_code == 503 and "Retry-After" in refused.headers
        text = pool.submit(server.complete, "other", "come back", 12)
        embedded = pool.submit(server.post, "/v1/embeddings", model="embedder", input="come back")
        assert text.result() == expected
        assert embedded.result()["data"] == vectors
        assert whole.result() == long
    server.settled()


def test_what_the_worker_had_not_begun_is_done_by_the_next_one(server: Server) -> None:
    """The worker is stopped first: it has the requests and answers none of them."""
    expected = server.complete("tiny", "in flight", 12)
    texts = ["in flight", "as well"]
    vectors = server.post("/v1/embeddings", model="embedder", input=texts)["data"]
    os.kill(server.worker, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        embedded = pool.submit(server.post, "/v1/embeddings", model="embedder", input=texts)
        text = pool.submit(server.complete, "tiny", "in flight", 12)
        until(server.queue, "the request to arrive")
        kill_worker(server)
        assert text.result() == expected
        assert embedded.result()["data"] == vectors
    server.settled()


@pytest.mark.slow
def test_clients_gone_while_the_worker_is_away_leave_nothing(server: Server) -> None:
    kill_worker(server)
    until(lambda: not server.ready(), "/ready turning false")
    body = {"model": "tiny", "prompt": "anybody there", "max_tokens": 50}
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=body, timeout=0.05)
    until(server.ready, "the worker to come back")
    assert server.queue() == []
    server.settled()


def test_the_log_says_what_happened_in_a_line(server: Server) -> None:
    log = server.err.read_text()
    assert "worker cpu:0 ended with code -9; starting it again" in log
    assert "Traceback" not in log
    assert server.out.read_text().count("\n") == 1
