"""Engines side by side: the same token ids, the same threads, rounds interleaved in one run."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenfold.core.errors import ConfigError

_VOCABULARY = (1000, 40000)


@dataclass(slots=True)
class Measure:
    """What one job showed. Rates in tokens a second."""

    prefill: float
    """Prompt tokens over the time to the last stream's first token."""
    decode: float
    """Tokens after each stream's first, over the time from the last first token to the end."""
    output: float
    """All output tokens over the whole time, prompts included."""


class Peer:
    """A peer's process. ``command`` starts it; it says it is ready, then answers job by job."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = str(self._read()["version"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise ConfigError(f"the peer {self.name} ended with code {self._process.wait()}")

    def run(self, prompts: list[list[int]], output: int) -> Measure:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "output": output}) + "\n")
        self._process.stdin.flush()
        return measure(self._read()["times"], sum(len(p) for p in prompts))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def measure(times: list[list[float]], prompt_tokens: int) -> Measure:
    """From each stream's token times. A decode rate over streams that overlap only in part counts
    what came after the last stream had begun."""
    first = max(row[0] for row in times)
    end = max(row[-1] for row in times)
    late = sum(sum(t > first for t in row) for row in times)
    return Measure(
        prefill=prompt_tokens / first,
        decode=late / (end - first) if end > first else 0.0,
        output=sum(len(row) for row in times) / end,
    )


def compare(
    gguf: Path,
    llama_python: str,
    *,
    threads: int,
    streams: tuple[int, ...] = (1, 16),
    prompt: int = 128,
    output: int = 128,
    rounds: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Medians of interleaved rounds, and the ratios round by round. Peers stay loaded throughout,
    so each waits while the other runs."""
    length = prompt + output + 16
    script = Path(__file__).parent / "peers" / "llama_cpp_peer.py"
    peers = [
        Peer("tenfold", [sys.executable, "-m", "tenfold.bench.peers.tenfold_peer",
                         str(gguf), str(threads)]),
        Peer("llama.cpp", [llama_python, str(script), str(gguf), str(threads),
                           str(max(streams)), str(length)]),
    ]  # fmt: skip
    random_ = random.Random(seed)
    rows: dict[str, Any] = {}
    try:
        for count in streams:
            rows[str(count)] = _rounds(peers, random_, count, prompt, output, rounds)
    finally:
        for peer in peers:
            peer.close()
    return {
        "settings": {"threads": threads, "prompt": prompt, "output": output, "rounds": rounds,
                     "model": gguf.name},
        "versions": {peer.name: peer.version for peer in peers},
        "streams": rows,
    }  # fmt: skip


def _rounds(
    peers: list[Peer], random_: random.Random, count: int, prompt: int, output: int, rounds: int
) -> dict[str, Any]:
    found: dict[str, list[Measure]] = {peer.name: [] for peer in peers}
    for round_ in range(rounds + 1):
        prompts = [[random_.randrange(*_VOCABULARY) for _ in range(prompt)] for _ in range(count)]
        for peer in peers if round_ % 2 else reversed(peers):
            one = peer.run(prompts, output)
            if round_:  # the first round warms caches and calibration
                found[peer.name].append(one)
    return {
        "rounds": {name: [asdict(m) for m in all_] for name, all_ in found.items()},
        "median": {
            name: {key: statistics.median(asdict(m)[key] for m in all_) for key in _KEYS}
            for name, all_ in found.items()
        },
        "ratio": {
            key: statistics.median(
                asdict(ours)[key] / asdict(theirs)[key]
                for ours, theirs in zip(found["tenfold"], found["llama.cpp"], strict=True)
                if asdict(theirs)[key]
            )
            for key in _KEYS
        },
    }


_KEYS = ("prefill", "decode", "output")
