"""The measurement of a burst: it moves what it says, by the system's count."""

from __future__ import annotations

import pytest

from tenfold.bench.models import burst as bursts
from tenfold.core.errors import OutOfMemory


@pytest.mark.parametrize("backend", ["anon", "memfd"])
def test_bytes_move_from_the_idle_model_to_the_busy_one(backend) -> None:
    found = bursts.burst(backend, rounds=3, moved=4 << 20, page_bytes=1 << 20)
    assert len(found.seconds) == len(found.idle_bytes) == 3
    for (idle, left), (busy, has) in zip(found.idle_bytes, found.busy_bytes, strict=True):
        assert idle - left >= 4 << 20 <= has - busy
    body = found.to_json()
    assert min(found.seconds) <= body["p50"] <= body["worst"] == max(found.seconds)


def test_a_move_that_the_system_did_not_see_does_not_count(monkeypatch) -> None:
    monkeypatch.setattr(bursts.VirtualRange, "resident_bytes", lambda self: 7)
    with pytest.raises(OutOfMemory, match="by the system's count"):
        bursts.burst("anon", rounds=1, moved=2 << 20, page_bytes=1 << 20)
