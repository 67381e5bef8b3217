"""SIGTERM: what runs is finished, what comes is refused, and the process leaves with code 0."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from e2e.serving import SMALL, serve, until
from e2e.sse import stream


def test_a_running_stream_is_finished_first(
    tiny: Mapping[str, Path], home: Path, tmp_path: Path
) -> None:
    with serve(tmp_path, home, {"tiny": tiny["tiny"]}, *SMALL) as server:
        with stream(
            server, "tiny", "go on", 1500, stream_options={"include_usage": True}
        ) as answer:
            next(answer)
            server.signal(signal.SIGTERM)
            until(lambda: not server.ready(), "/ready turning false")
            refused = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "late"})
            assert refused.status_code == 503
            assert "draining" in refused.json()["error"]["message"]
            assert int(refused.headers["Retry-After"]) >= 1
            rest = list(answer)
        assert rest[-1].data == "[DONE]"
        assert rest[-2].data["usage"]["completion_tokens"] == 1500
        assert all(event.kind != "error" for event in rest)
        assert server.wait() == 0
        assert server.out.read_text().count("\n") == 1
        assert "Traceback" not in server.err.read_text()


@pytest.mark.slow
def test_what_cannot_finish_in_time_is_told(
    tiny: Mapping[str, Path], home: Path, tmp_path: Path
) -> None:
    sets = (*SMALL, "server.drain_seconds=0.2")
    with serve(tmp_path, home, {"tiny": tiny["tiny"]}, *sets) as server:
        with stream(server, "tiny", "go on", 8000) as answer:
            next(answer)
            server.signal(signal.SIGTERM)
            rest = list(answer)
        assert rest[-1].kind == "error"
        assert rest[-1].data["error"]["code"] == "unavailable"
        assert server.wait() == 0
        assert "Traceback" not in server.err.read_text()


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(
    tiny: Mapping[str, Path], home: Path, tmp_path: Path
) -> None:
    with serve(tmp_path, home, {"tiny": tiny["tiny"]}, *SMALL) as server:
        with stream(server, "tiny", "go on", 8000) as answer:
            next(answer)
            server.signal(signal.SIGINT)
            until(lambda: not server.ready(), "/ready turning false")
            server.signal(signal.SIGINT)
            rest = list(answer)
        assert rest[-1].kind == "error"
        assert server.wait() == 128 + signal.SIGINT
        assert "Traceback" not in server.err.read_text()
