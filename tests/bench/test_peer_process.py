"""A peer's process: noise is no answer, stopping reaches every child, nothing is left behind."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bench.fake_peers import make_plan
from tenfold.bench.sidebyside.process import PeerFailed, PeerProcess
from tenfold.bench.sidebyside.tree import pss_bytes, tree

PARENT = """
import json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
for line in sys.stdin:
    job = json.loads(line)
    if job["do"] == "hang":
        continue
    if job["do"] == "die":
        sys.exit("the last words")
    if job["do"] == "grow":
        block = bytearray(job["size"])
        for at in range(0, job["size"], 4096):
            block[at] = 1
        del block
    print(json.dumps({"ok": job["do"] != "refuse", "error": "will not", "child": child.pid}),
          flush=True)
    if job["do"] == "quit":
        break
"""


def start(folder: Path) -> PeerProcess:
    return PeerProcess("fake", [sys.executable, "-c", PARENT], folder / "fake.log")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_gone(pid: int) -> None:
    """The test's own time limit ends it if the process stays."""
    with suppress(FileNotFoundError, ProcessLookupError):
        while state(pid) != "Z":
            os.sched_yield()


def test_the_engine_behind_the_runner_answers_through_its_own_noise(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    command = [sys.executable, str(plan.scripts / "runner.py"), plan.specs[1].script]
    peer = PeerProcess("fake", command, tmp_path / "fake.log")
    try:
        answer = peer.ask("start", 60, model="m", threads=3, options={}, streams=1, length=9)
        assert answer == {"version": "1", "settings": {"threads": 3}, "weights": "m"}
        peer.ask("prepare", 60, streams=2, length=10)
        rows = peer.ask("run", 60, prompts=[[1], [2]], output=3)
        assert rows["tokens"] == [[1, 2, 4], [2, 4, 8]]
        with pytest.raises(PeerFailed, match="more tokens than room"):
            peer.ask("run", 60, prompts=[[1] * 11, [2]], output=1)
        assert peer.ask("run", 60, prompts=[[1], [2]], output=1)["tokens"] == [[1], [2]]
    finally:
        peer.close()
    assert "talks while it is imported" in (tmp_path / "fake.log").read_text()


def test_pausing_stops_children_too_and_asking_wakes_them(tmp_path: Path) -> None:
    peer = start(tmp_path)
    try:
        child = peer.ask("hello", 60)["child"]
        assert tree(peer.pid) == [peer.pid, child]
        peer.pause()
        os.waitid(os.P_PID, peer.pid, os.WSTOPPED | os.WNOWAIT)
        while state(child) != "T":
            os.sched_yield()
        assert peer.ask("hello", 60)["child"] == child
        assert state(child) != "T"
    finally:
        peer.close()
    wait_until_gone(child)


def test_failures_say_what_happened(tmp_path: Path) -> None:
    peer = start(tmp_path)
    child = peer.ask("hello", 60)["child"]
    with pytest.raises(PeerFailed, match="fake failed at refuse: will not"):
        peer.ask("refuse", 60)
    with pytest.raises(PeerFailed, match="did not answer hang in 0 s"):
        peer.ask("hang", 0.05)
    with pytest.raises(PeerFailed, match="ended with code 1: the last words"):
        peer.ask("die", 60)
    peer.close()
    wait_until_gone(child)


def test_a_stopped_peer_can_be_closed(tmp_path: Path) -> None:
    peer = start(tmp_path)
    child = peer.ask("hello", 60)["child"]
    peer.pause()
    peer.close()
    wait_until_gone(child)


def test_peak_memory_outlives_the_peak(tmp_path: Path) -> None:
    peer = start(tmp_path)
    try:
        peer.ask("hello", 60)
        before = pss_bytes(peer.pid)
        with peer.peak() as seen:
            for _ in range(20):  # long enough to be sampled, on any machine
                peer.ask("grow", 60, size=64 << 20)
        assert seen.peak > before + (32 << 20)
        assert before > 1 << 20
    finally:
        peer.close()
